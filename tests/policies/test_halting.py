"""The halting rule against a full run: what it stops can no longer change (METHODS 5.3 and P7)."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.policies import Outputs, make_policy
from tests._replay import replay

Trajectory = tuple[NDArray[Any], NDArray[Any]]
BOUNDS = ["paper", "tight"]


def _random(rng: np.random.Generator, rows: int, depth: int, labels: int) -> Trajectory:
    """Random y, float [rows, depth, labels], and h, float [rows, depth], from flat to peaked and from 0 to 1."""
    sharpness = rng.choice([0.3, 1.0, 3.0, 10.0], (rows, 1, 1))
    logits = sharpness * (rng.normal(size=(rows, depth, labels)) + 2 * rng.normal(size=(rows, 1, labels)))
    y = np.exp(logits - logits.max(-1, keepdims=True))
    h = rng.beta(rng.choice([0.2, 1.0, 4.0], (rows, 1)), rng.choice([0.2, 1.0, 4.0], (rows, 1)), (rows, depth))
    return y / y.sum(-1, keepdims=True), h


def _exits(trajectory: Trajectory) -> list[Outputs]:
    y, h = trajectory
    return [{"probabilities": y[:, n], "halt": h[:, n]} for n in range(y.shape[1])]


def _replay(trajectory: Trajectory, **knobs: float | str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    layers = range(1, trajectory[0].shape[1] + 1)
    return replay(make_policy("halting", knobs, exit_layers=list(layers)), _exits(trajectory), list(layers))


def _full_answer(trajectory: Trajectory) -> NDArray[Any]:
    """a_N in closed form: the sum of y_n p_{n-1} (1 - p_n) ... (1 - p_{N-1})."""
    y, h = trajectory
    before = np.cumprod(np.concatenate([np.ones((len(h), 1)), h[:, :-1]], axis=1), axis=1)
    # The factor of y_n is the product of 1 - p_{m-1} over m > n.
    later = np.cumprod((1 - before)[:, :0:-1], axis=1)[:, ::-1]
    weights = before * np.concatenate([later, np.ones((len(h), 1))], axis=1)
    result: NDArray[Any] = np.einsum("rn,rnc->rc", weights, y)
    return result


def _plain_loop(y: NDArray[Any], h: NDArray[Any], *, slack: float, bound: str) -> tuple[list[float], int]:
    """One row, number by number, as METHODS 5.3 writes it."""
    answer, p = [0.0] * y.shape[1], 1.0
    for n in range(len(h)):
        answer = [float(y[n, c]) * p + answer[c] * (1 - p) for c in range(len(answer))]
        p = float(h[n]) * p
        left = len(h) - n - 1
        second, first = sorted(answer)[-2:]
        rest = (1 - p) ** left
        limit = second + p * left if bound == "paper" else second * rest + (1 - rest)
        if first * rest + slack >= limit:
            return answer, n + 1
    raise AssertionError("the last step always stops")


@pytest.mark.parametrize("labels", [2, 3, 5])
@pytest.mark.parametrize("depth", [6, 12])
@pytest.mark.parametrize("bound", BOUNDS)
def test_halting_never_changes_the_label_of_random_trajectories(labels: int, depth: int, bound: str) -> None:
    trajectory = _random(np.random.default_rng(labels * depth), 12_000, depth, labels)

    scores, layers = _replay(trajectory, bound=bound)

    assert (scores.argmax(1) == _full_answer(trajectory).argmax(1)).all()
    assert len(np.unique(layers)) == depth


@pytest.mark.parametrize("labels", [2, 3, 5])
@pytest.mark.parametrize("depth", [6, 12])
@pytest.mark.parametrize("bound", BOUNDS)
def test_halting_never_changes_the_label_of_adversarial_tails(labels: int, depth: int, bound: str) -> None:
    y, h = _random(np.random.default_rng(labels + depth), 12_000, depth, labels)
    scores, layers = _replay((y, h), bound=bound)
    runner_up = np.argsort(scores, axis=1)[:, -2]
    after = np.arange(depth)[None, :] >= layers[:, None]

    # From the step after the stop on, every y is one-hot on the runner-up and h = 1 keeps p as large as it can be.
    y = np.where(after[:, :, None], np.eye(labels)[runner_up][:, None, :], y)
    h = np.where(after, 1.0, h)

    assert (layers < depth).mean() > 0.3
    assert (_full_answer((y, h)).argmax(1) == scores.argmax(1)).all()


def test_halting_tight_bound_is_reached_by_the_adversarial_tail() -> None:
    # One step before the stop the same tail does change labels: the bound has no room to spare.
    y, h = _random(np.random.default_rng(0), 12_000, 6, 2)
    _, layers = _replay((y, h), bound="tight")
    rows = np.flatnonzero(layers > 1)
    y, h, last = y[rows], h[rows], layers[rows] - 1
    cut = np.stack([_full_answer((y[i : i + 1, :n], h[i : i + 1, :n]))[0] for i, n in enumerate(last)])
    after = np.arange(6)[None, :] >= last[:, None]
    tail = np.eye(2)[cut.argmin(1)][:, None, :]

    changed = _full_answer((np.where(after[:, :, None], tail, y), np.where(after, 1.0, h))).argmax(1) != cut.argmax(1)

    assert changed.all()


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_halting_tight_stops_no_later_than_paper(labels: int) -> None:
    trajectory = _random(np.random.default_rng(labels), 12_000, 12, labels)

    _, paper = _replay(trajectory, bound="paper")
    _, tight = _replay(trajectory, bound="tight")

    assert (tight <= paper).all()
    assert tight.mean() < paper.mean()


@pytest.mark.parametrize("bound", BOUNDS)
def test_halting_more_slack_stops_no_later(bound: str) -> None:
    trajectory = _random(np.random.default_rng(3), 5_000, 12, 3)

    layers = [_replay(trajectory, bound=bound, slack=slack)[1] for slack in (0.0, 0.1, 0.5, 1.0, 3.0, 12.0)]

    assert all((more <= less).all() for less, more in itertools.pairwise(layers))
    assert (layers[-1] == 1).all()


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_halting_equals_a_plain_loop(bound: str, slack: float) -> None:
    y, h = _random(np.random.default_rng(7), 400, 6, 3)

    scores, layers = _replay((y, h), bound=bound, slack=slack)

    expected = [_plain_loop(y[i], h[i], slack=slack, bound=bound) for i in range(len(y))]
    assert layers.tolist() == [layer for _, layer in expected]
    assert np.exp(scores) == pytest.approx(np.array([answer for answer, _ in expected]), abs=1e-12)


@pytest.mark.parametrize("labels", [2, 5])
def test_halting_answers_are_distributions_in_closed_form(labels: int) -> None:
    trajectory = _random(np.random.default_rng(1), 2_000, 12, labels)
    layers = list(range(1, 13))
    policy = make_policy("never", {}, exit_layers=layers, rule=("halting", {}))

    scores, _ = replay(policy, _exits(trajectory), layers)

    assert np.exp(scores).sum(axis=1) == pytest.approx(np.ones(2_000))
    assert np.exp(scores) == pytest.approx(_full_answer(trajectory), abs=1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("halt", [0.0, 1.0])
def test_halting_extreme_values_stay_finite(bound: str, halt: float) -> None:
    y = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    h = np.full((1, 3), halt)

    scores, layers = _replay((y, h), bound=bound)

    # h = 1 keeps p at 1, so that each answer replaces the one before (at the last, 0 ** 0 is 1); h = 0 freezes the
    # first answer.
    assert layers.tolist() == [3 if halt else 1]
    assert np.isfinite(scores).all()
    assert scores.argmax() == 0


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("halt", "layer"), [(0.5, 1), (0.5 + 2**-20, 2)])
def test_halting_equality_stops(bound: str, halt: float, layer: int) -> None:
    # One exit left and a = (1, 0): both bounds ask whether 1 - h >= h.
    y = np.array([[[1.0, 0.0], [0.0, 1.0]]])

    _, layers = _replay((y, np.array([[halt, 0.5]])), bound=bound)

    assert layers.tolist() == [layer]
