"""What a policy is inside a graph: the questions of `edgebert.policies.Policy`, answered with nodes for one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgebert.policies import DropPosition, ExitPosition, GatePosition, SelectPosition
from edgebert.single._graph import BOOL, DOUBLE, INT64, Graph, Value

State = dict[str, Value]
"""What a rule remembers between exits."""

Outputs = Mapping[str, Value]
"""What one step gives, by name. A step is put into the graph when it is first asked for one of them."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says after one exit.

    Attributes:
        state: What to remember.
        finished: Whether the row stops here, bool [1].
        scores: Writes the row's answer if it stops here, float64 [1, labels].
    """

    state: State
    finished: Value
    scores: Callable[[], Value]


class Rule:
    """A policy in a graph. By itself it stops nobody, and the row runs everything on all of its tokens."""

    stops = False
    """Whether a row may stop before the last exit."""

    selects = False
    """Whether it chooses among the pieces of a layer."""

    drops = False
    """Whether it drops tokens."""

    def __init__(
        self,
        graph: Graph,
        config: Any,
        *,
        labels: int,
        exit_layers: Sequence[int],
        requires_knobs: bool,
        own: Rule | None = None,
    ) -> None:
        """Notes where it is written.

        Args:
            graph: The graph.
            config: The policy's knobs.
            labels: How many labels an exit has; 1 is a value.
            exit_layers: The layers (from 1) after which the model can answer.
            requires_knobs: Whether every knob must be given at each run, in place of having a default.
            own: The method's own rule, whose full-depth answer `never` gives.
        """
        self.graph = graph
        self.config = config
        self.labels = labels
        self.exit_layers = tuple(exit_layers)
        self.own = own
        self._requires_knobs = requires_knobs
        self._knobs: dict[str, Value] = {}
        self.defaults: dict[str, NDArray[Any]] = {}

    def knob(self, name: str, default: object, *, whole: bool = False, size: int | str = 1) -> Value:
        """Returns a knob as an input of the graph, float64 or, if whole, int64, [size]."""
        if name not in self._knobs:
            kind = INT64 if whole else DOUBLE
            array: NDArray[Any] = np.atleast_1d(np.asarray(default, helper.tensor_dtype_to_np_dtype(kind)))
            self.defaults[name] = array
            self._knobs[name] = self.graph.input(name, kind, [size], None if self._requires_knobs else array)
        return self._knobs[name]

    def start(self) -> State:
        """Returns what is remembered before the first exit."""
        return {}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Takes one exit's outputs into account. At the last exit the row stops whatever the verdict."""
        return Verdict(state, self.graph.constant([False], BOOL), lambda: self.own_scores(outputs))

    def own_scores(self, outputs: Outputs) -> Value:
        """Returns an exit's own answer: log-probabilities, or its single value, float64 [1, labels]."""
        if "probabilities" in outputs:
            return safe_log(outputs["probabilities"])
        logits = outputs["logits"].cast(DOUBLE)
        return logits if self.labels == 1 else logits.apply("LogSoftmax", axis=-1)

    def plan(self, outputs: Outputs, layers: int) -> Value:
        """Turns what a plan's graph gives into the layers to run, bool [1, layers]."""
        return self.graph.constant([[True] * layers], BOOL)

    def gate(self, outputs: Outputs, position: GatePosition, executed: Value) -> Value:
        """Says whether the layer after a gate runs, bool [1]; `executed` layers did so far, int64 [1]."""
        return self.graph.constant([True], BOOL)

    def select(self, scores: Value, position: SelectPosition, tokens: Value) -> Value:
        """Says which pieces of a layer run, bool [1, pieces].

        Args:
            scores: How much each piece matters, float [1, pieces].
            position: What is chosen from, and where.
            tokens: How many tokens the row has, int64 [1].
        """
        return self.graph.constant([[True] * position.choice.pieces], BOOL)

    def keep(self, position: DropPosition, tokens: Value) -> Value:
        """Returns how many tokens go on from here, of a row that began with so many, int64 [1]."""
        return tokens


def probabilities(outputs: Outputs) -> Value:
    """Returns the probabilities of an exit that gives them, in their own type, or else logits: then float64."""
    if "probabilities" in outputs:
        return outputs["probabilities"]
    return outputs["logits"].cast(DOUBLE).apply("Softmax", axis=-1)


def safe_log(values: Value) -> Value:
    """Returns the logarithm of probabilities, with 0 read as 1e-30, float64."""
    return values.cast(DOUBLE).at_least(1.0e-30).apply("Log")
