import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebert.bundle.manifest import Macs
from edgebert.errors import ConfigError
from edgebert.policies import Choice, SelectPosition, make_policy

HEADS = Choice("head_choice", 12, Macs(token=4 * 768 * 64, token_pair=2 * 64))
NEURONS = Choice("block_choice", 3072, Macs(token=2 * 768))
POSITIONS = [SelectPosition(1, choice, (HEADS, NEURONS), Macs(row=2 * 768 * 64)) for choice in (HEADS, NEURONS)]
TOKENS = np.array([3, 17, 128])


@given(st.floats(0.01, 1.0), st.integers(1, 24), st.integers(0, 1000))
def test_every_row_runs_exactly_as_many_pieces_as_asked_for_and_the_best(width: float, pieces: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (5, pieces)).astype(np.float32)
    choice = Choice("head_choice", pieces, Macs(token=1))
    policy = make_policy("width", {"width": width}, exit_layers=())

    chosen = policy.select(scores, SelectPosition(1, choice, (choice,), Macs()), np.full(5, 7))

    assert (chosen.sum(axis=1) == max(1, round(width * pieces))).all()
    for row, taken in zip(scores, chosen, strict=True):
        best = sorted(range(pieces), key=lambda piece: (-row[piece], piece))[: taken.sum()]
        assert sorted(best) == np.flatnonzero(taken).tolist()


@pytest.mark.parametrize("width", [0.25, 0.4, 0.5, 0.6, 0.75, 0.8])
def test_an_exact_budget_makes_up_for_rounded_heads_and_predictors(width: float) -> None:
    policy = make_policy("width", {"width": width, "exact_budget": True}, exit_layers=())
    scores = [np.random.default_rng(0).normal(size=(3, position.choice.pieces)) for position in POSITIONS]

    chosen = [policy.select(s, position, TOKENS).sum(axis=1) for s, position in zip(scores, POSITIONS, strict=True)]

    costs = [position.choice.each.of(TOKENS) for position in POSITIONS]
    spent = POSITIONS[0].predictors.of(TOKENS) + sum(n * cost for n, cost in zip(chosen, costs, strict=True))
    full = sum(position.choice.pieces * cost for position, cost in zip(POSITIONS, costs, strict=True))
    assert spent / full == pytest.approx(np.full(3, width), abs=0.001)


def test_at_full_width_no_predictor_is_asked() -> None:
    assert not make_policy("width", {"width": 1.0}, exit_layers=()).selects
    assert make_policy("width", {"width": 0.99}, exit_layers=()).selects
    assert not make_policy("never", {}, exit_layers=()).selects


@pytest.mark.parametrize("width", [0, -0.5, 1.01, float("nan")])
def test_refuses_what_is_no_share(width: float) -> None:
    with pytest.raises(ConfigError, match="width: expected more than 0, at most 1"):
        make_policy("width", {"width": width}, exit_layers=())
