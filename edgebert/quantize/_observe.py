"""Watches the graphs of a bundle while its own program runs over texts: each sees the rows that really reach it.

No text is run through a graph that its policy would not have sent there: a late layer is calibrated on the hard texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from edgebert.bundle import WHOLE_MODEL_NAME, Bundle
from edgebert.bundle.manifest import Knobs, Manifest
from edgebert.candidates import grid_of
from edgebert.output import Reporter
from edgebert.quantize._graphs import find_products, graph_bytes, read_graph
from edgebert.quantize._recipe import Calibration, Need, Range
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.sessions import make_graph
from edgebert.text import Encoded, Text, Values

FEWEST_ROWS = 16
"""Graphs that fewer rows reach are calibrated on all texts at full depth, or under another setting of the bundle."""

_ROWS_AT_A_TIME = 16
_MOST_SAMPLES = 16


def observe(
    bundle: Bundle, texts: Sequence[Text], paths: Sequence[str], need: Need, reporter: Reporter
) -> tuple[dict[str, Calibration], list[str]]:
    """Runs texts through a bundle under its default policy and notes what reaches its graphs.

    Args:
        bundle: The bundle.
        texts: The texts.
        paths: The graphs to watch.
        need: Note the range of every activation that is multiplied with a constant matrix, or record all inputs.
        reporter: Where progress goes.

    Returns:
        What was seen of each graph, and those of them that too few rows reached, so that they were run at full depth,
        or under the first of the bundle's other settings that runs them.
    """
    with EdgeModel(bundle, prepare=False) as model:
        encoded = model.encode(texts)
        watched = {path: _Watched(bundle, path, need) for path in paths}
        inside = {path: graph for path, graph in watched.items() if path in model.graphs}
        _run(model.with_graphs(inside), encoded, "calibrate", reporter)
        rare = [path for path, graph in inside.items() if graph.calibration.rows < FEWEST_ROWS]
        if rare:
            model.set_policy("never")
            _run(model.with_graphs({path: inside[path] for path in rare}), encoded, "calibrate rare graphs", reporter)
        for name, knobs in _other_settings(bundle.manifest):
            unseen = {path: graph for path, graph in inside.items() if not graph.calibration.rows}
            if unseen:
                model.set_policy(name, **knobs)
                _run(model.with_graphs(unseen), encoded, f"calibrate under {name}", reporter)
        if WHOLE_MODEL_NAME in watched:
            whole = watched[WHOLE_MODEL_NAME]
            for start in range(0, len(encoded), _ROWS_AT_A_TIME):
                whole.run(model.pad(encoded[start : start + _ROWS_AT_A_TIME]), whole.outputs)
    return {path: graph.calibration for path, graph in watched.items()}, rare


def _other_settings(manifest: Manifest) -> list[tuple[str, Knobs]]:
    """Returns settings that may run graphs for which `default` and full depth have no use: a layer's parts, say."""
    rule = manifest.rule.policy, manifest.rule.knobs
    grids = [(name, grid_of(name, rule)) for name in manifest.policies]
    points = [(point.policy, point.knobs) for name, point in manifest.operating_points.items() if name != "default"]
    return [*points, *((name, grid[len(grid) // 2]) for name, grid in grids if grid)]


def _run(model: EdgeModel, encoded: Sequence[Encoded], title: str, reporter: Reporter) -> None:
    with reporter.track(title, len(encoded)) as advance:
        for start in range(0, len(encoded), _ROWS_AT_A_TIME):
            rows = encoded[start : start + _ROWS_AT_A_TIME]
            model.run_encoded(rows, batch_size=_ROWS_AT_A_TIME)
            advance(len(rows), "")


class _Watched:
    """A graph that notes what comes by."""

    def __init__(self, bundle: Bundle, path: str, need: Need) -> None:
        model = read_graph(bundle.read(path))
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = tuple(value.name for value in model.graph.input)
        self.calibration = Calibration()
        self._need = need
        self._inner: tuple[str, ...] = ()
        if need == "ranges":
            wanted = dict.fromkeys(product.activation for product in find_products(model))
            self._inner = tuple(name for name in wanted if name not in (*self.inputs, *self.outputs))
            self._seen = tuple(wanted)
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._inner)
        self._graph = make_graph(graph_bytes(model), name=path, threads=1)

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        made = self._graph.run(values, self._graph.outputs)
        rows = len(values[self.inputs[0]])
        self.calibration.rows += rows
        if self._need == "samples" and len(self.calibration.samples) < _MOST_SAMPLES and rows:
            self.calibration.samples.append({name: values[name].copy() for name in self.inputs})
        if self._need == "ranges":
            known = {name: values[name] for name in self.inputs} | made
            for name in self._seen:
                self._note(name, _without_padding(known[name], values.get("attention_mask")))
        return dict(zip(names, (made[name] for name in self.outputs), strict=True))

    def _note(self, name: str, numbers: NDArray[Any]) -> None:
        if not numbers.size:
            return
        low, high = float(numbers.min()), float(numbers.max())
        before = self.calibration.ranges.get(name, Range(low, high))
        self.calibration.ranges[name] = Range(min(low, before.low), max(high, before.high))


def _without_padding(numbers: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any]:
    """Returns the numbers of real tokens where there is a state for each token, else all of them."""
    if mask is None or numbers.ndim < 3 or numbers.shape[:2] != mask.shape:
        return numbers
    kept: NDArray[Any] = numbers[mask != 0]
    return kept
