"""A graph that is a little off: which decisions does that change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import STATES
from edgebert.runtime.graphs import Graph
from edgebert.text import Values


def shaken_graphs(graphs: Mapping[str, Graph], seed: int, margin: float) -> dict[str, Graph]:
    """Returns a model's graphs, each of them a little off; `EdgeModel.with_graphs` takes them."""
    return {path: Shaken(graph, seed, margin) for path, graph in graphs.items()}


class Shaken:
    """A graph whose floats, but for hidden states, are off by a margin, each up or down."""

    def __init__(self, graph: Graph, seed: int, margin: float) -> None:
        """Wraps a graph.

        Args:
            graph: The graph.
            seed: Of the ups and downs.
            margin: How far every number is off.
        """
        self._graph = graph
        self._margin = margin
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._rng = np.random.default_rng(seed)

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph and changes what it gives."""
        made = self._graph.run(values, names)
        return {name: value if name in STATES else self._shake(value) for name, value in made.items()}

    def _shake(self, value: NDArray[Any]) -> NDArray[Any]:
        signs = self._rng.choice(np.array([-1, 1], value.dtype), value.shape)
        shaken: NDArray[Any] = value + value.dtype.type(self._margin) * signs
        return shaken
