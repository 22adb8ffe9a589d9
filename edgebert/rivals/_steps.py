"""Where a side's time goes: a clock around every session call, in turns of their own, so that others have none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgebert.rivals._measure import Measurement, Side
from edgebert.rivals._protocol import Steps
from edgebert.runtime.graphs import Graph
from edgebert.text import Values


def time_steps(side: Side, measurement: Measurement) -> Steps:
    """Runs every call of a prepared case once and returns what its sessions took of the time, by kind of step."""
    side.choose(measurement.case)
    measurement.opening()
    graphs = side.step_graphs()
    clocks = {kind: _Clock() for kind in graphs}
    with contextlib.ExitStack() as stack:
        for kind, members in graphs.items():
            for graph in members:
                stack.enter_context(clocks[kind].around(graph))
        start = time.perf_counter()
        for call in measurement.calls:
            call()
        total_s = time.perf_counter() - start
    ran = {kind: clock for kind, clock in clocks.items() if clock.calls}
    return Steps(
        calls=len(measurement.calls),
        total_ms=1000 * total_s,
        graph_ms={kind: 1000 * clock.seconds for kind, clock in ran.items()},
        graph_calls={kind: clock.calls for kind, clock in ran.items()},
    )


class _Clock:
    """Sums what the calls of some graphs take."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0

    @contextlib.contextmanager
    def around(self, graph: Graph) -> Iterator[None]:
        """Times a graph's calls while the context lasts."""
        run = graph.run

        def timed(values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
            start = time.perf_counter()
            made = run(values, names)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            return made

        graph.run = timed  # type: ignore[method-assign]  # of this one graph, in a process of its own
        try:
            yield
        finally:
            del graph.run
