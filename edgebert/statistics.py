"""The intervals, tests and trade-off curves that the results state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.errors import DataError, require

_RESAMPLES = 2000
# Resamples drawn at once: bounds the memory to this many copies of the values.
_BATCH = 50
_Z = 1.959964
_FEW = 30
"""Pairs that differ, below which resampling gives too narrow an interval: at 4 of 872 one in five misses."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate and its 95 % confidence interval, in the unit of the values.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def mean_interval(values: NDArray[Any], *, seed: int = 0) -> Interval:
    """Returns the mean and its 95 % interval: Wilson's for bool, else percentile bootstrap from 2000 resamples.

    Wilson's (1927) keeps its width where all are right: 20 of 20 is 0.84 to 1.

    Args:
        values: One number or bool for each example, [examples].
        seed: Of the resampling; the same seed gives the same interval.

    Raises:
        DataError: There is no value.
        MissingExtraError: SciPy is not installed.
    """
    is_share = np.asarray(values).dtype == np.bool_
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise DataError(
            f"interval: expected a row of at least 1 value, got the shape {list(values.shape)}; add values."
        )
    if is_share:
        return _share_interval(float(values.mean()), len(values))
    if np.all(values == values[0]):
        value = float(values[0])
        return Interval(value, value, value)
    stats = require("scipy.stats", extra="eval", purpose="confidence intervals")
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(values.mean()), float(low), float(high))


def _share_interval(share: float, n: int) -> Interval:
    """Returns Wilson's score interval of a share of n."""
    middle = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * (share * (1 - share) / n + _Z * _Z / (4 * n * n)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def paired_difference(first: NDArray[Any], second: NDArray[Any], *, seed: int = 0) -> Interval:
    """Returns the mean of first minus second over the same examples, and its 95 % interval.

    Of bools that differ in fewer than 30 examples the adjusted interval of Agresti and Min (2005), which keeps its
    width where none differs; else percentile bootstrap, as in `mean_interval`.

    Args:
        first: One number or bool for each example, [examples].
        second: The same examples' values in the other condition, [examples].
        seed: Of the resampling.

    Raises:
        DataError: There is no value, or the lengths differ.
        MissingExtraError: SciPy is not installed.
    """
    _check_paired(first, second)
    first, second = np.asarray(first), np.asarray(second)
    if first.size and first.dtype == second.dtype == np.bool_ and np.sum(first != second) < _FEW:
        return _rare_difference(int(np.sum(first & ~second)), int(np.sum(second & ~first)), len(first))
    return mean_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), seed=seed)


def _rare_difference(only_first: int, only_second: int, n: int) -> Interval:
    """Returns the difference of two shares of the same n: half an example is added to each cell of their table."""
    difference = (only_first - only_second) / (n + 2)
    half = _Z * (only_first + only_second + 1 - (only_first - only_second) ** 2 / (n + 2)) ** 0.5 / (n + 2)
    return Interval((only_first - only_second) / n, max(-1.0, difference - half), min(1.0, difference + half))


def resampled_interval(statistic: Callable[[NDArray[np.int64]], float], n_examples: int, *, seed: int = 0) -> Interval:
    """Returns a statistic that is no mean, and its 95 % percentile bootstrap interval from 2000 resamples.

    A paired difference is the difference of two statistics of the same examples.

    Args:
        statistic: Computes it from some of the examples, given by their places, int64 [examples].
        n_examples: How many examples there are.
        seed: Of the resampling; the same seed gives the same interval.

    Raises:
        DataError: There is no example.
    """
    if n_examples < 1:
        raise DataError("interval: expected at least 1 example, got none; add examples.")
    rng = np.random.default_rng(seed)
    resampled = [statistic(rng.integers(0, n_examples, n_examples)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(float(statistic(np.arange(n_examples))), float(low), float(high))


def mcnemar_p(first_correct: NDArray[np.bool_], second_correct: NDArray[np.bool_]) -> float:
    """Returns the two-sided exact McNemar p-value, 0 to 1: do two models err equally often?

    Args:
        first_correct: Whether the first model is right, bool [examples].
        second_correct: Whether the second model is right on the same examples, bool [examples].

    Raises:
        DataError: The lengths differ.
        MissingExtraError: SciPy is not installed.
    """
    _check_paired(first_correct, second_correct)
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if only_first + only_second == 0:
        return 1.0
    stats = require("scipy.stats", extra="eval", purpose="McNemar's test")
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def quantile_curve(values: Sequence[float]) -> list[float]:
    """Returns the quantiles of some values in whole percent, from the smallest (0) to the largest (100): 101 numbers.

    >>> quantile_curve([1.0, 3.0])[::50]
    [1.0, 2.0, 3.0]
    """
    return [round(float(value), 5) for value in np.percentile(values, range(101))]


def upper_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points that no random mixture of two others beats, cheapest first.

    The line through them is concave and rises. It starts at the cheapest point (the best of several as
    cheap). A point that costs more than another and scores no better is never on it, nor is one on the
    straight line between two others.

    Args:
        points: (cost, metric) pairs in any order; lower cost and higher metric are better.
    """
    hull: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if hull and points[index][1] <= points[hull[-1]][1]:
            continue
        while len(hull) >= 2 and _is_below(points[hull[-1]], points[hull[-2]], points[index]):
            hull.pop()
        hull.append(index)
    return hull


def mixture_at(costs: Sequence[float], cost: float) -> tuple[int, int, float]:
    """Returns which two operating points mix to a cost, and the share (0 to 1) of inputs the first one gets.

    Args:
        costs: The operating points' costs, ascending, without repeats.
        cost: The cost to reach on average. Outside the range of `costs` the end point is used alone.

    Raises:
        DataError: There are no costs.
    """
    if not costs:
        raise DataError("mixture: expected at least 1 operating point, got none; measure one first.")
    right = bisect_right(costs, cost)
    if right == 0 or right == len(costs):
        end = max(right - 1, 0)
        return end, end, 1.0
    left = right - 1
    return left, right, (costs[right] - cost) / (costs[right] - costs[left])


def _is_below(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the point is on or below the line from left to right."""
    return (point[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (point[0] - left[0])


def _check_paired(first: NDArray[Any], second: NDArray[Any]) -> None:
    if np.shape(first) != np.shape(second):
        raise DataError(
            f"comparison: expected two values for each example, got the shapes {list(np.shape(first))} and "
            f"{list(np.shape(second))}; compare runs over the same data."
        )
