"""Settings of policies that are worth trying, and which of those measured to take; training and `tune` share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle.manifest import Knobs
from edgebert.errors import DataError, EdgeBertError
from edgebert.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A policy with its knobs, and what it was measured to do.

    Attributes:
        policy: A file in `edgebert/policies`.
        knobs: Its knobs.
        metric: The task's metric; nan where the texts have no labels.
        mean_layers: The mean number of layers.
        cost_ratio: Multiply-accumulates over those of all layers.
    """

    policy: str
    knobs: Knobs
    metric: float
    mean_layers: float
    cost_ratio: float


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def check_comparable(task: Task, targets: NDArray[Any], where: str) -> None:
    """Refuses texts on which the metric is not defined, so that no setting could be told from another.

    Raises:
        DataError: The metric is a correlation, and all targets are equal.
    """
    if task.per_text is None and len(np.unique(targets)) < 2:
        raise DataError(
            f"{where}: {task.METRIC} needs at least 2 different values, got 1 in {len(targets)} rows; give more."
        )


def check_answers(scores: NDArray[Any]) -> None:
    """Refuses a model whose answers are no numbers: every setting would seem as good as full depth.

    Raises:
        EdgeBertError: A score is nan.
    """
    if np.isnan(scores).any():
        raise EdgeBertError("at full depth the model's scores are nan; train it again, with a lower learning rate.")


def grid_of(policy: str, rule: tuple[str, Knobs]) -> list[Knobs]:
    """Returns the settings of a policy's grid; those of the method's own rule on top of its knobs."""
    base = rule[1] if policy == rule[0] else {}
    return [{**base, **knobs} for knobs in registry.load("edgebert.policies", policy).GRID]


def series_of(policy: str, rule: tuple[str, Knobs]) -> list[tuple[str, list[Knobs]]]:
    """Returns the grid as series in which only one knob changes, its name with each; the costliest setting first.

    >>> [(knob, len(settings)) for knob, settings in series_of("predicted_exit", ("never", {}))]
    [('offset', 81), ('offset', 81), ('offset', 81), ('offset', 81), ('quantile', 14)]
    """
    module = registry.load("edgebert.policies", policy)
    series: dict[tuple[str, str], list[Knobs]] = {}
    for raw, knobs in zip(module.GRID, grid_of(policy, rule), strict=True):
        knob = next(name for name in module.CHEAPER if name in raw)
        others = {name: value for name, value in raw.items() if name != knob}
        series.setdefault((knob, str(others)), []).append(knobs)
    return [(knob, settings) for (knob, _), settings in series.items()]


def subdivide(knob: str, settings: Sequence[Knobs], parts: int) -> list[Knobs]:
    """Puts evenly spaced settings between neighbours; none where the knob takes only whole numbers.

    >>> subdivide("slack", [{"slack": 0.0}, {"slack": 1.0}], 4)
    [{'slack': 0.0}, {'slack': 0.25}, {'slack': 0.5}, {'slack': 0.75}, {'slack': 1.0}]
    >>> subdivide("patience", [{"patience": 3}, {"patience": 1}], 4)
    [{'patience': 3}, {'patience': 1}]
    """
    finer: list[Knobs] = []
    for here, there in zip(settings, [*settings[1:], None], strict=True):
        finer.append(here)
        start, end = here[knob], None if there is None else there[knob]
        if isinstance(start, float) and isinstance(end, float):
            steps = [start + (end - start) * part / parts for part in range(1, parts)]
            finer += [{**here, knob: float(f"{value:.6g}")} for value in steps]
    return finer


def keeps(metric: float, least: float) -> bool:
    """Says whether a metric is at least another; a rounding error of either counts for nothing."""
    return metric >= least - 1.0e-9


def cheapest_that_keeps(candidates: Sequence[AnyCandidate], metric: float) -> AnyCandidate | None:
    """Returns the cheapest candidate with at least this metric, the first of equals; None where none has it."""
    kept = [candidate for candidate in candidates if keeps(candidate.metric, metric)]
    return min(kept, key=lambda candidate: candidate.cost_ratio, default=None)


def pareto_front(candidates: Sequence[AnyCandidate]) -> list[AnyCandidate]:
    """Returns the candidates that no other beats in cost and metric, the cheapest first."""
    front: list[AnyCandidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost_ratio, -c.metric)):
        if not front or candidate.metric > front[-1].metric:
            front.append(candidate)
    return front
