"""Mixed precision, found by measuring: the graphs whose int8 form costs the most accuracy stay fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgebert.bundle.manifest import Trial
from edgebert.data import Example
from edgebert.errors import QualityError
from edgebert.measure import Measured, measure
from edgebert.output import Reporter
from edgebert.runtime.graphs import Graph
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.sessions import make_graph
from edgebert.tasks import load_task

_ROUNDING_POINTS = 1e-7
"""A rounding error of the metric counts for nothing."""


class Judge:
    """Measures the source bundle with some of its graphs quantized, under its default policy."""

    def __init__(self, model: EdgeModel, examples: Sequence[Example], reporter: Reporter) -> None:
        self._model, self._examples, self._reporter = model, examples, reporter
        self._task = load_task(model.manifest.task)
        self.source = self._measure(model, "source")

    @property
    def metric(self) -> float:
        """The source's metric, at most 1."""
        return float(self.source.row["metric"])

    def measure(self, graphs: Mapping[str, bytes], title: str) -> Measured:
        """Runs the examples with these graphs in the place of the source's."""
        made = {path: self._make(path, data) for path, data in graphs.items() if path in self._model.graphs}
        return self._measure(self._model.with_graphs(made), title)

    def disagreement(self, measured: Measured) -> float:
        """Returns the share of the texts answered otherwise than by the source, 0 to 1."""
        return 1.0 - self._task.agreement(measured.predictions, self.source.predictions)

    def trial(self, kept: Sequence[str], measured: Measured) -> Trial:
        """Returns the record of a measurement with these graphs left in fp32."""
        metric = float(measured.row["metric"])
        return Trial(kept=tuple(sorted(kept)), metric=metric, drop_points=100 * (self.metric - metric))

    def _make(self, path: str, data: bytes) -> Graph:
        return make_graph(data, name=path, threads=self._model.threads)

    def _measure(self, model: EdgeModel, title: str) -> Measured:
        return measure(model, self._examples, reporter=self._reporter, name=title)


@dataclass
class Chosen:
    """What was found.

    Attributes:
        graphs: The graphs to quantize, by path.
        trials: Every measurement, in order; the last is of these graphs.
    """

    graphs: dict[str, bytes]
    trials: list[Trial]


def choose_graphs(
    judge: Judge, quantized: Mapping[str, bytes], kept: Sequence[str], max_drop: float, say: Callable[[str], None]
) -> Chosen:
    """Chooses which graphs to quantize so that the metric drops by at most so many points.

    First all are quantized. If that is too much, each is quantized alone and measured; then the most sensitive is
    given back its fp32 form, then the next too, until the drop is met. Graphs that lose equal points are ranked by how
    many answers they change.

    Args:
        judge: Measures.
        quantized: The quantized form of every graph that has one.
        kept: The graphs that have none.
        max_drop: Points of the metric.
        say: Takes a line about what was found.

    Raises:
        QualityError: The drop is only met with nothing quantized.
    """
    measured = judge.measure(quantized, "all quantized")
    trials = [judge.trial(kept, measured)]
    if _is_met(trials[0], max_drop):
        return Chosen(dict(quantized), trials)
    say(f"all quantized: {trials[0].drop_points:+.2f} points lost, {max_drop} allowed; measuring each graph alone")
    sensitivity = {}
    for path, data in quantized.items():
        measured = judge.measure({path: data}, f"only {path}")
        trials.append(judge.trial([*kept, *(other for other in quantized if other != path)], measured))
        sensitivity[path] = (trials[-1].drop_points, judge.disagreement(measured))
    remaining = dict(quantized)
    for path in sorted(quantized, key=lambda path: (sensitivity[path], path), reverse=True)[:-1]:
        del remaining[path]
        kept = [*kept, path]
        measured = judge.measure(remaining, f"{len(remaining)} graphs quantized")
        trials.append(judge.trial(kept, measured))
        if _is_met(trials[-1], max_drop):
            say(f"{len(kept)} graphs stay fp32: {', '.join(sorted(kept))}; {trials[-1].drop_points:+.2f} points lost")
            return Chosen(remaining, trials)
    alone = min(trials, key=lambda trial: trial.drop_points)
    if _is_met(alone, max_drop):  # a single graph, alone, that was not the last one left
        remaining = {path: data for path, data in quantized.items() if path not in alone.kept}
        return Chosen(remaining, [*trials, alone])
    raise QualityError(
        f"expected a drop of at most {max_drop} points; with a single graph quantized it is still "
        f"{alone.drop_points:.2f} (metric {alone.metric:.4f}, fp32 {judge.metric:.4f}, "
        f"{np.size(judge.source.targets)} texts). Allow more, or use another mode or backend."
    )


def _is_met(trial: Trial, max_drop: float) -> bool:
    return trial.drop_points <= max_drop + _ROUNDING_POINTS
