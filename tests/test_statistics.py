from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebert.errors import DataError
from edgebert.statistics import (
    Interval,
    mcnemar_p,
    mean_interval,
    mixture_at,
    paired_difference,
    resampled_interval,
    upper_hull,
)

POINTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20)


def test_mean_interval_of_accuracy() -> None:
    correct = np.repeat([True, False], [900, 100])

    interval = mean_interval(correct)

    # The normal approximation gives 0.9 +- 1.96 * sqrt(0.9 * 0.1 / 1000) = 0.9 +- 0.0186.
    assert interval.value == 0.9
    assert interval.low == pytest.approx(0.8814, abs=0.002)
    assert interval.high == pytest.approx(0.9186, abs=0.002)


def test_mean_interval_same_seed() -> None:
    values = np.random.default_rng(1).normal(size=50)

    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(20, 20, 0.8389, 1.0), (0, 20, 0.0, 0.1611), (1, 1, 0.2065, 1.0), (7, 10, 0.3968, 0.8922)],
)
def test_mean_interval_of_few_answers_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    interval = mean_interval(np.arange(n) < right)

    assert interval.value == right / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("values", [[0.1] * 30, [2.5]])
def test_mean_interval_degenerate(values: list[float]) -> None:
    assert mean_interval(np.array(values)) == Interval(values[0], values[0], values[0])


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_mean_interval_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected a row of at least 1 value"):
        mean_interval(np.zeros(shape))


def test_paired_difference_bools() -> None:
    first = np.array([True, True, False, True] * 25)
    second = np.array([True, False, False, True] * 25)

    interval = paired_difference(first, second)

    assert interval.value == 0.25
    assert 0.15 < interval.low < 0.25 < interval.high < 0.35


@pytest.mark.parametrize(
    ("only_first", "only_second", "n", "low", "high"),
    [(0, 0, 20, -0.0891, 0.0891), (4, 0, 872, -0.0004, 0.0096), (0, 4, 872, -0.0096, 0.0004)],
)
def test_paired_difference_of_few_that_differ(
    only_first: int, only_second: int, n: int, low: float, high: float
) -> None:
    first = np.zeros(n, np.bool_)
    second = np.zeros(n, np.bool_)
    first[:only_first] = True
    second[only_first : only_first + only_second] = True

    interval = paired_difference(first, second)

    assert interval.value == (only_first - only_second) / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.002, 0.0005), (0.006, 0.001), (0.02, 0.02)])
def test_paired_difference_covers_what_it_says(only_first: float, only_second: float) -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        drawn = generator.random(872)
        first, second = drawn < only_first, (drawn >= only_first) & (drawn < only_first + only_second)
        interval = paired_difference(first, second)
        missed += not interval.low <= only_first - only_second <= interval.high

    assert missed / 400 <= 0.07


def test_paired_difference_constant() -> None:
    first = np.array([3.0, 1.0, 7.0])

    assert paired_difference(first, first - 1) == Interval(1.0, 1.0, 1.0)


def test_paired_difference_wrong_lengths() -> None:
    with pytest.raises(DataError, match=r"got the shapes \[3\] and \[2\]"):
        paired_difference(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 2, 112 / 1024), (2, 8, 112 / 1024), (4, 4, 1.0)],
)
def test_mcnemar_p_exact(only_first: int, only_second: int, p_value: float) -> None:
    both = [True] * 7
    first = np.array([True] * only_first + [False] * only_second + both)
    second = np.array([False] * only_first + [True] * only_second + both)

    assert mcnemar_p(first, second) == pytest.approx(p_value)


def test_mcnemar_p_wrong_lengths() -> None:
    with pytest.raises(DataError, match="compare runs over the same data"):
        mcnemar_p(np.array([True]), np.array([True, False]))


@pytest.mark.parametrize(
    ("points", "hull"),
    [
        ([], []),
        ([(1.0, 0.5)], [0]),
        ([(3, 0.9), (1, 0.5), (2, 0.8)], [1, 2, 0]),
        ([(1, 0.5), (2, 0.6), (3, 0.9)], [0, 2]),
        ([(1, 0.5), (2, 0.7), (3, 0.9)], [0, 2]),
        ([(1, 0.5), (2, 0.8), (3, 0.7), (4, 0.8)], [0, 1]),
        ([(1, 0.5), (1, 0.6), (1, 0.6), (2, 0.7)], [1, 3]),
        ([(1, 0.9), (2, 0.5)], [0]),
    ],
)
def test_upper_hull_cases(points: list[tuple[float, float]], hull: list[int]) -> None:
    assert upper_hull(points) == hull


@given(points=POINTS)
def test_upper_hull_is_concave_and_rises(points: list[tuple[float, float]]) -> None:
    corners = [points[index] for index in upper_hull(points)]

    slopes = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(corners)]

    assert corners[0][0] == min(cost for cost, _ in points)
    assert all(slope > 0 for slope in slopes)
    assert all(before > after for before, after in pairwise(slopes))


@given(points=POINTS)
def test_upper_hull_is_above_all_points(points: list[tuple[float, float]]) -> None:
    corners = [points[index] for index in upper_hull(points)]
    costs, scores = [cost for cost, _ in corners], [score for _, score in corners]

    for cost, score in points:
        first, second, weight = mixture_at(costs, cost)
        assert weight * scores[first] + (1 - weight) * scores[second] >= score - 1e-9


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (0.5, (0, 0, 1.0)),
        (1.0, (0, 1, 1.0)),
        (1.5, (0, 1, 0.5)),
        (2.0, (1, 2, 1.0)),
        (3.5, (1, 2, 0.25)),
        (4.0, (2, 2, 1.0)),
        (9.0, (2, 2, 1.0)),
    ],
)
def test_mixture_at_cases(cost: float, expected: tuple[int, int, float]) -> None:
    assert mixture_at([1.0, 2.0, 4.0], cost) == expected


@pytest.mark.parametrize(("cost", "expected"), [(1.0, (0, 0, 1.0)), (2.0, (0, 0, 1.0)), (3.0, (0, 0, 1.0))])
def test_mixture_at_one_point(cost: float, expected: tuple[int, int, float]) -> None:
    assert mixture_at([2.0], cost) == expected


@given(costs=st.lists(st.integers(0, 100), min_size=1, unique=True).map(sorted), share=st.floats(0, 1))
def test_mixture_at_has_the_cost(costs: list[int], share: float) -> None:
    cost = costs[0] + share * (costs[-1] - costs[0])

    first, second, weight = mixture_at(costs, cost)

    assert 0 <= weight <= 1
    assert weight * costs[first] + (1 - weight) * costs[second] == pytest.approx(cost)


def test_mixture_at_no_points() -> None:
    with pytest.raises(DataError, match="expected at least 1 operating point"):
        mixture_at([], 1.0)


def test_resampled_interval_of_a_mean_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)

    interval = resampled_interval(lambda places: float(values[places].mean()), 400)

    expected = mean_interval(values)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert interval == resampled_interval(lambda places: float(values[places].mean()), 400)


def test_resampled_interval_of_a_paired_difference_is_narrow() -> None:
    values = np.random.default_rng(0).normal(size=400)
    better = values + 0.01

    interval = resampled_interval(lambda places: float(better[places].mean() - values[places].mean()), 400)

    assert (interval.low, interval.high) == pytest.approx((0.01, 0.01))


def test_resampled_interval_of_nothing() -> None:
    with pytest.raises(DataError, match="expected at least 1 example, got none"):
        resampled_interval(lambda places: 0.0, 0)
