"""Two numbers that foretell the time of a call: fixed x unit + rate x multiply-accumulates.

Four units are tried: a call, a row, a layer's call, and a token's way through a layer. Both numbers are 0 or more and
minimise the sum of squared relative errors. The unit taken is the one whose median relative error is smallest on points
that were left out of the fit: each length in turn, or each batch size or setting where there is one length only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import ConfigError
from edgebert.scale._grid import Point

UNITS: Mapping[str, Callable[[Point], float]] = {
    "call": lambda point: 1.0,
    "row": lambda point: point.batch,
    "layer call": lambda point: point.layers,
    "token in a layer": lambda point: point.layers * point.batch * point.length,
}
_GROUPS: Mapping[str, Callable[[Point], object]] = {
    "length": lambda point: point.length,
    "batch": lambda point: point.batch,
    "setting": lambda point: str(point.knobs),
}
_GIGA = 1e9


def choose_form(points: Sequence[Point]) -> dict[str, Any]:
    """Returns the best form with its two numbers and its error, and all forms.

    `fixed_ms` is per unit, `ms_per_gmac` per 1e9 multiply-accumulates; the errors are relative, on left-out points.

    Raises:
        ConfigError: There are too few different points to leave some out.
    """
    left_out = next((name for name, group in _GROUPS.items() if len({*map(group, points)}) > 2), None)
    if left_out is None:
        raise ConfigError(
            "scale: expected at least 3 different lengths (or batches, or depths) to fit on some and check on others; "
            "give more --lengths."
        )
    groups = [_GROUPS[left_out](point) for point in points]
    forms = [_form(unit, points, groups) for unit in UNITS]
    best = min(forms, key=lambda form: form["median_relative_error"])
    return {**best, "left_out": left_out, "points": len(points), "forms": forms}


def _form(unit: str, points: Sequence[Point], groups: Sequence[object]) -> dict[str, Any]:
    units = np.array([UNITS[unit](point) for point in points], np.float64)
    gmacs = np.array([point.macs for point in points]) / _GIGA
    times = np.array([point.mean_ms for point in points])
    errors = np.zeros(len(points))
    for group in dict.fromkeys(groups):
        out = np.array([other == group for other in groups])
        fixed_ms, ms_per_gmac = fit(units[~out], gmacs[~out], times[~out])
        errors[out] = np.abs(fixed_ms * units[out] + ms_per_gmac * gmacs[out] - times[out]) / times[out]
    fixed_ms, ms_per_gmac = fit(units, gmacs, times)
    return {
        "unit": unit,
        "fixed_ms": fixed_ms,
        "ms_per_gmac": ms_per_gmac,
        "median_relative_error": float(np.median(errors)),
        "p90_relative_error": float(np.percentile(errors, 90)),
        "max_relative_error": float(errors.max()),
    }


def fit(units: NDArray[np.float64], gmacs: NDArray[np.float64], times_ms: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the two numbers, ms per unit and ms per 1e9 multiply-accumulates, both 0 or more.

    Args:
        units: Units of each call, [calls].
        gmacs: Its multiply-accumulates, in 1e9, [calls].
        times_ms: What it took, more than 0, [calls].
    """
    relative = np.stack([units, gmacs], axis=1) / times_ms[:, None]
    wanted = np.ones(len(times_ms))
    both = np.linalg.lstsq(relative, wanted, rcond=None)[0]
    if both.min() >= 0:
        return float(both[0]), float(both[1])
    alone = [float(column @ wanted / (column @ column)) for column in relative.T]
    losses = [float(((column * value - wanted) ** 2).sum()) for column, value in zip(relative.T, alone, strict=True)]
    return (alone[0], 0.0) if losses[0] < losses[1] else (0.0, alone[1])
