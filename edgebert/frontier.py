"""The static frontier: what the best static models of any cost reach, and whether a method lies above it.

Its points are the `plain` bundles given (the first k layers, fine-tuned) and untrained subsets of their layers; between
two points lies a random mixture of them. The hull is taken on the very texts reported, which favours the static side.
A second yardstick is the model itself, treating every text alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example
from edgebert.errors import ConfigError
from edgebert.measure import Measured, measure
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.statistics import mean_interval, mixture_at, upper_hull

NO_STATIC_BUNDLE = (
    "--against static-frontier: give the static bundles too: plain ones of different depth "
    "(edgebert train -c export_configs/plain_sst2.yaml --set method.layers=K --set method.pool=mean)."
)


def needs_a_mean(name: str, metric: str) -> str:
    """Returns why a task with this metric has nothing of that name to compare with."""
    return (
        f"--against {name}: a mixture of models is measured text by text, and {metric} is not a mean over "
        "texts; compare with --against BUNDLE."
    )


def layer_subsets(layers: int) -> list[tuple[int, ...]]:
    """Returns the untrained subsets tried, for every size: the first layers, and evenly spaced ones, with the last.

    >>> layer_subsets(4)
    [(4,), (1, 4), (1, 2, 4)]
    """
    subsets: list[tuple[int, ...]] = []
    for size in range(1, layers):
        first = (*range(1, size), layers)
        spaced = tuple(int(x) for x in np.linspace(1, layers, size).round()) if size > 1 else (layers,)
        subsets += [first] if spaced == first else [first, spaced]
    return subsets


def measure_subsets(
    model: EdgeModel,
    examples: Sequence[Example],
    batch_size: int,
    max_length: int | None,
    name: str,
    reporter: Reporter,
) -> list[Measured]:
    """Measures a static model with some of its layers left out."""
    results = []
    for subset in layer_subsets(model.manifest.encoder.layers):
        label = f"layers {' '.join(map(str, subset))}"
        with model.only_layers(subset) as part:
            results.append(measure(part, examples, batch_size, max_length, reporter, name=name, policy=label))
    return results


def compare(measured: Sequence[Measured], subsets: Sequence[Measured]) -> None:
    """Adds to every adaptive row the static frontier at its cost and the paired difference from it.

    Raises:
        ConfigError: No static bundle was given.
    """
    points = [entry for entry in measured if entry.row["rule"] == "never" and entry.row["method"] == "plain"]
    if not points:
        raise ConfigError(NO_STATIC_BUNDLE)
    points = [*points, *subsets]
    for entry in measured:
        if entry not in points:
            entry.row["frontier"] = _difference(
                entry, points, [float(p.macs.mean()) for p in points], entry.macs.mean()
            )


def measure_fixed_exits(
    model: EdgeModel,
    examples: Sequence[Example],
    batch_size: int,
    max_length: int | None,
    name: str,
    reporter: Reporter,
) -> list[Measured]:
    """Measures an adaptive model that treats every text alike: stopped after each layer it can stop after.

    A model that can leave layers out anywhere is also measured on the subsets of its layers that `layer_subsets` gives.
    """
    results = []

    def add(label: str, policy: str, **knobs: int | str) -> None:
        model.set_policy(policy, **knobs)
        results.append(measure(model, examples, batch_size, max_length, reporter, name=name, policy=label))

    for layer in model.manifest.exit_layers:
        add(f"fixed exit {layer}", "fixed", layer=layer)
    if "path" in model.manifest.policies:
        for subset in layer_subsets(model.manifest.encoder.layers):
            add(f"path {' '.join(map(str, subset))}", "path", layers=",".join(map(str, subset)))
    return results


def compare_with_fixed_exits(measured: Sequence[Measured], exits: Sequence[Measured]) -> None:
    """Adds to every row of one model what its best fixed exits reach at its depth, and the paired difference."""
    depths = [entry.row["mean_layers"] for entry in exits]
    for entry in measured:
        entry.row["fixed_exits"] = _difference(entry, exits, depths, entry.row["mean_layers"])


def _difference(entry: Measured, points: Sequence[Measured], costs: Sequence[float], cost: float) -> dict[str, Any]:
    """Returns what the best mixture of points reaches at a cost, and how much better an entry is, text by text."""
    hull = upper_hull([(c, float(_per_text(point).mean())) for c, point in zip(costs, points, strict=True)])
    low, high, weight = mixture_at([costs[i] for i in hull], float(cost))
    first, second = points[hull[low]], points[hull[high]]
    expected = weight * _per_text(first) + (1 - weight) * _per_text(second)
    difference = mean_interval(_per_text(entry) - expected)
    return {
        "metric": float(expected.mean()),
        "difference": difference.value,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "between": [_describe(first), _describe(second)],
    }


def _per_text(entry: Measured) -> NDArray[Any]:
    assert entry.per_text is not None
    return entry.per_text


def _describe(entry: Measured) -> str:
    return f"{entry.row['bundle']} ({entry.row['policy']})"
