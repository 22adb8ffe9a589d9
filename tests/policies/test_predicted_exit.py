"""The predictions against plain loops over METHODS 4.3, and what the rows of a batch do to each other."""

import math
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.decisions import Decision, follow
from edgebert.errors import ConfigError
from edgebert.policies import knob_names, make_policy
from edgebert.policies.predicted_exit import GRID, Policy

LAYERS = 6


def _policy(**knobs: Any) -> Policy:
    policy = make_policy("predicted_exit", knobs, exit_layers=range(1, LAYERS + 1))
    assert isinstance(policy, Policy)
    return policy


def _depths(policy: Policy, shares: Any, log_shares: Any = None) -> list[int]:
    outputs = {"exit_share": np.asarray(shares), "exit_log_share": np.log(shares if log_shares is None else log_shares)}
    wanted = policy.plan(outputs, np.shape(shares)[1])
    depths = wanted.sum(axis=1)
    assert (wanted == (np.arange(1, np.shape(shares)[1] + 1) <= depths[:, None])).all()
    return [int(depth) for depth in depths]


def _one_hot(*layers: int) -> NDArray[np.float64]:
    return np.eye(LAYERS)[np.array(layers) - 1]


@pytest.fixture
def shares() -> NDArray[np.float64]:
    """500 exit distributions, from flat ones to sharp ones."""
    rng = np.random.default_rng(0)
    sharpness = rng.uniform(0, 5, (500, 1))
    raw = np.exp(sharpness * rng.standard_normal((500, LAYERS)))
    return np.asarray(raw / raw.sum(axis=1, keepdims=True), np.float64)


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (1.0, 0.75), (1.0, -1.5), (2.0, 0.3), (4.0, -2.0)])
def test_expect_is_the_rounded_mean(shares: NDArray[np.float64], gain: float, offset: float) -> None:
    expected = []
    for share in shares:
        mean = sum(layer * part for layer, part in zip(range(1, LAYERS + 1), share, strict=True))
        moved = 3.5 + gain * (mean - 3.5)
        expected.append(min(max(math.ceil(moved - 0.5 + offset), 1), LAYERS))

    assert _depths(_policy(gain=gain, offset=offset), shares) == expected
    assert len(set(expected)) >= 4


@pytest.mark.parametrize("offset", [0.0, 1.0, -2.0])
def test_mode_is_the_likeliest_layer(shares: NDArray[np.float64], offset: float) -> None:
    rng = np.random.default_rng(1)
    log_shares = rng.permutation(shares)
    expected = []
    for share in log_shares:
        best = 1
        for layer in range(2, LAYERS + 1):
            if math.log(share[layer - 1]) > math.log(share[best - 1]):
                best = layer
        expected.append(min(max(best + int(offset), 1), LAYERS))

    # It reads the mean of the logarithms and not the mean of the shares.
    assert _depths(_policy(prediction="mode", offset=offset), shares, log_shares) == expected


def test_mode_decides_ties_alike_whatever_the_rounding() -> None:
    shares = np.full((2, LAYERS), 1 / LAYERS)
    log_shares = np.full((2, LAYERS), -9.0)
    log_shares[:, 1:3] = -1.23455
    log_shares[0, 1] += 1e-7
    log_shares[1, 2] += 1e-7

    assert _depths(_policy(prediction="mode"), shares, np.exp(log_shares)) == [2, 2]


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9, 1.0])
def test_quantile_is_the_first_layer_that_covers_it(shares: NDArray[np.float64], quantile: float) -> None:
    expected = []
    for share in shares:
        covered, layer = float(share[0]), 1
        while covered < quantile - 1e-4:
            covered, layer = covered + float(share[layer]), layer + 1
        expected.append(layer)

    assert _depths(_policy(prediction="quantile", quantile=quantile), shares) == expected


@pytest.mark.parametrize("knobs", [{}, {"prediction": "mode"}, {"prediction": "quantile"}, {"gain": 3.0}], ids=str)
def test_certain_rows_stop_where_they_must(knobs: dict[str, Any]) -> None:
    log_shares = np.maximum(_one_hot(1, LAYERS), 1e-12)

    assert _depths(_policy(**knobs), _one_hot(1, LAYERS), log_shares) == [1, LAYERS]


def test_certain_rows_in_between() -> None:
    layers = list(range(1, LAYERS + 1))

    assert _depths(_policy(), _one_hot(*layers), np.ones((LAYERS, LAYERS))) == layers


@pytest.mark.parametrize(("offset", "depth"), [(0.0, 2), (0.5, 2), (0.51, 3), (-0.5, 1), (-99.0, 1), (99.0, LAYERS)])
def test_offset_moves_the_depth_and_stays_inside(offset: float, depth: int) -> None:
    assert _depths(_policy(offset=offset), _one_hot(2), np.ones((1, LAYERS))) == [depth]


@pytest.mark.parametrize("noise", [-1e-6, 0.0, 1e-6])
@pytest.mark.parametrize("knobs", [{}, {"prediction": "mode"}, {"prediction": "quantile", "quantile": 0.5}], ids=str)
def test_ties_are_not_decided_by_rounding_errors(knobs: dict[str, Any], noise: float) -> None:
    share = np.array([[0.5 - noise, 0.5 + noise, 0.0, 0.0, 0.0, 0.0]])

    assert _depths(_policy(**knobs), share, np.maximum(share, 1e-12)) == [1]


def test_higher_offsets_and_quantiles_are_never_cheaper(shares: NDArray[np.float64]) -> None:
    by_offset = [_depths(_policy(offset=offset, gain=2.0), shares) for offset in (-3.0, -1.0, 0.0, 0.5, 4.0)]
    by_quantile = [
        _depths(_policy(prediction="quantile", quantile=quantile), shares) for quantile in (0.1, 0.4, 0.7, 1.0)
    ]

    for depths in (by_offset, by_quantile):
        assert (np.diff(np.array(depths), axis=0) >= 0).all()
        assert sum(depths[0]) < sum(depths[-1])


@pytest.mark.parametrize(
    ("batch_exit", "expected"), [("own", [1, 4, 2]), ("homogeneous", [1, 4, 2]), ("max", [4, 4, 4])]
)
def test_settle_only_max_looks_at_batch_mates(batch_exit: str, expected: list[int]) -> None:
    policy = _policy(batch_exit=batch_exit)
    wanted = policy.plan({"exit_share": _one_hot(1, 4, 2)}, LAYERS)

    assert policy.settle(wanted).sum(axis=1).tolist() == expected
    assert policy.needs_equal_plans is (batch_exit == "homogeneous")


@pytest.mark.parametrize(("batch_exit", "expected"), [("own", [1, 4, 2]), ("max", [4, 4, 4])])
def test_follow_takes_the_answer_after_the_foretold_layer(batch_exit: str, expected: list[int]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((LAYERS, 3, 2))
    heads = [Decision("head", layer, {"logits": logits[layer - 1]}) for layer in range(1, LAYERS + 1)]

    plan = Decision("plan", 0, {"exit_share": _one_hot(1, 4, 2)})
    followed = follow(_policy(batch_exit=batch_exit), [plan, *heads], LAYERS)

    assert followed.exit_layer.tolist() == expected
    assert followed.path.sum(axis=1).tolist() == expected
    assert followed.scores == pytest.approx(logits[np.array(expected) - 1, np.arange(3)])


def test_grid_starts_at_full_depth_and_reaches_the_first_layer(shares: NDArray[np.float64]) -> None:
    plain = [setting for setting in GRID if setting.get("gain") == 1.0]

    assert set(_depths(_policy(**plain[0]), shares)) == {LAYERS}
    assert set(_depths(_policy(**plain[-1]), shares)) == {1}


def test_knob_names() -> None:
    assert knob_names("predicted_exit") == ["prediction", "offset", "gain", "quantile", "batch_exit"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"quantile": 0.0}, "quantile: expected more than 0, at most 1, got 0.0"),
        ({"quantile": 1.5}, "quantile: expected more than 0, at most 1, got 1.5"),
        ({"gain": 0.0}, "gain: expected more than 0, got 0.0"),
        ({"gain": float("nan")}, "gain: expected more than 0, got nan"),
        ({"offset": float("nan")}, "offset: expected a finite number, got nan"),
        ({"prediction": "median"}, "prediction: invalid enum value 'median'"),
        ({"batch_exit": "mean"}, "batch_exit: invalid enum value 'mean'"),
        ({"ofset": 1.0}, "unknown key 'ofset'. Did you mean 'offset'?"),
    ],
)
def test_config_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^policy predicted_exit: {re.escape(message)}"):
        _policy(**knobs)
