"""A graph as the engine sees it, those loaded when they are first needed, and the shelf that keeps them in a budget."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from edgebert.errors import ConfigError
from edgebert.text import Values

_NOTICE_SECONDS = 1.0
"""How long to wait to be told that a graph has run, before looking: an interrupt may have kept that from being said."""


class Graph(Protocol):
    """One graph of a bundle, ready to run. Safe to run from several threads."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the values it reads."""
        ...

    @property
    def outputs(self) -> list[str]:
        """What the graph itself calls its outputs, in order."""
        ...

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph.

        Args:
            values: Arrays by name; those that are inputs of the graph are read.
            names: What to call the outputs, in the graph's order.
        """
        ...


@dataclass(frozen=True)
class MemoryUse:
    """What the graphs of a model hold.

    Attributes:
        budget_mb: What they may hold, in millions of bytes; None: no limit.
        loaded_mb: What those hold that are loaded now.
        peak_mb: The most they ever held at once, with what loading takes on the way.
        loads: How often a graph was loaded.
        drops: How often one was let go to make room.
    """

    budget_mb: float | None
    loaded_mb: float
    peak_mb: float
    loads: int
    drops: int


class Shelf:
    """The loaded graphs of a model, kept within a budget.

    When there is no room, the graph that ran the fewest times is let go, of equals the one that ran last: layers run
    in turn, so that it is the one whose next turn is farthest away. A graph that is running is never let go.

    An interrupt, or whatever else a signal raises, can come between any two steps; what it must not leave behind is a
    lock that is held, a graph that counts as running, or one that is loaded and not counted.
    """

    def __init__(self, budget_bytes: int | None = None, on_drop: Callable[[], None] = lambda: None) -> None:
        """Makes an empty shelf.

        Args:
            budget_bytes: What the loaded graphs may hold together; None: no limit.
            on_drop: Called after graphs were let go.
        """
        self._budget_bytes = budget_bytes
        self._on_drop = on_drop
        self._lock = threading.RLock()  # itself a context: a Condition as one can be left locked by an interrupt
        self._changed = threading.Condition(self._lock)
        # Weak, since a graph knows its shelf: sessions must not wait for a collection of cycles to be let go.
        self._loaded: weakref.WeakKeyDictionary[LateGraph, int] = weakref.WeakKeyDictionary()
        self._peak_bytes = 0
        self._loads = 0
        self._drops = 0
        self._clock = 0
        self._is_closed = False

    @property
    def use(self) -> MemoryUse:
        """What the graphs hold now, and held at most."""
        with self._lock:
            budget = None if self._budget_bytes is None else self._budget_bytes / 1e6
            loaded = sum(self._loaded.values()) / 1e6
            return MemoryUse(budget, loaded, self._peak_bytes / 1e6, self._loads, self._drops)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: what is run then is loaded for that one call."""
        return self._is_closed

    def check(self, graph: LateGraph) -> None:
        """Refuses a graph that the budget has no room for even alone.

        Raises:
            ConfigError: Its loading takes more than the budget.
        """
        if self._budget_bytes is not None and graph.loading_bytes > self._budget_bytes:
            less = ", or prepare the bundle (edgebert prepare) to need less" * (graph.loading_bytes > graph.size_bytes)
            raise ConfigError(
                f"memory_budget_mb: {graph.name} alone takes {graph.loading_bytes / 1e6:.1f} MB to load, the budget is "
                f"{self._budget_bytes / 1e6:.1f}; give more{less}."
            )

    def close(self) -> None:
        """Lets every graph go, those that are running as soon as they have run."""
        with self._lock:
            self._is_closed = True
            self._drop_idle()

    def run(self, graph: LateGraph, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs a graph, loaded first unless it is; see `Graph.run`."""
        use = object()  # no context of ours: one that is made by a generator costs a short text 1 % of its time
        try:
            with self._lock:
                loaded = graph.loaded or self._load(graph)
                self._clock += 1
                graph.runs, graph.last_run = graph.runs + 1, self._clock
                graph.users.add(use)
            return loaded.run(values, names)
        finally:
            graph.users.discard(use)
            with self._lock:
                if self._is_closed:
                    self._drop_idle()
                self._changed.notify_all()

    def load(self, graph: LateGraph) -> Graph:
        """Loads a graph now, unless that was done."""
        with self._lock:
            return graph.loaded or self._load(graph)

    def _load(self, graph: LateGraph) -> Graph:
        """Makes room and loads; the lock is held, but while waiting for a graph that is running."""
        while self._budget_bytes is not None and sum(self._loaded.values()) + graph.loading_bytes > self._budget_bytes:
            idle = [other for other in self._loaded if not other.users]
            if idle:
                self._drop(min(idle, key=lambda other: (other.runs, -other.last_run)))
                self._drops += 1
            else:
                self._changed.wait(_NOTICE_SECONDS)
            if graph.loaded is not None:
                return graph.loaded
        self._peak_bytes = max(self._peak_bytes, sum(self._loaded.values()) + graph.loading_bytes)
        loaded = graph.make()
        self._loaded[graph] = graph.size_bytes
        graph.loaded = loaded
        self._loads += 1
        return loaded

    def _drop(self, graph: LateGraph) -> None:
        graph.loaded = None
        del self._loaded[graph]
        self._on_drop()

    def _drop_idle(self) -> None:
        for graph in [graph for graph in self._loaded if not graph.users]:
            self._drop(graph)


class LateGraph:
    """A graph that is loaded when it is first run, for those that a device may never need.

    Attributes:
        name: What messages call it.
        make: Loads it.
        size_bytes: What it holds once loaded.
        loading_bytes: What loading it takes, itself included.
        loaded: The graph while it is loaded; the shelf's.
        runs: How often it ran.
        last_run: When it ran last, as the shelf counts runs.
        users: The runs that are under way.
    """

    def __init__(
        self,
        make: Callable[[], Graph],
        *,
        shelf: Shelf | None = None,
        name: str = "",
        size_bytes: int = 0,
        loading_bytes: int = 0,
    ) -> None:
        self.name = name
        self.make = make
        self.size_bytes = size_bytes
        self.loading_bytes = loading_bytes
        self.loaded: Graph | None = None
        self.runs = self.last_run = 0
        self.users: set[object] = set()
        self._shelf = shelf or Shelf()
        self._shelf.check(self)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the values it reads; loads the graph."""
        return self.load().inputs

    @property
    def outputs(self) -> list[str]:
        """What the graph itself calls its outputs, in order; loads the graph."""
        return self.load().outputs

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph; see `Graph.run`.

        Raises:
            BundleError: Its file was changed or removed since the bundle was opened.
        """
        return self._shelf.run(self, values, names)

    def load(self) -> Graph:
        """Loads the graph now, unless that was done, and returns it.

        Raises:
            BundleError: ONNX Runtime cannot load it, or its file was changed or removed since the bundle was opened.
        """
        return self._shelf.load(self)
