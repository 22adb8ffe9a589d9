"""fixed: the row stops after one layer, and runs the first ones where layers are planned. The input is `layer`."""

from __future__ import annotations

from edgebert.policies import ExitPosition, GatePosition
from edgebert.single import _rule
from edgebert.single._graph import INT64, Value
from edgebert.single._rule import Outputs, State, Verdict


class Rule(_rule.Rule):
    """The rule with its layer, counted from 1, int64 [1]. A layer without an exit means the next one that has one."""

    stops = True

    @property
    def layer(self) -> Value:
        """The knob."""
        return self.knob("layer", self.config.layer or self.exit_layers[-1], whole=True)

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops the row; an exit that is not asked computes nothing."""
        stops = self.layer <= position.layer
        return Verdict(state, stops, lambda: self.own_scores(outputs))

    def plan(self, outputs: Outputs, layers: int) -> Value:
        """The row runs the first layers."""
        return self.graph.constant([list(range(1, layers + 1))], INT64) <= self.layer

    def gate(self, outputs: Outputs, position: GatePosition, executed: Value) -> Value:
        """The row runs the first layers."""
        return self.graph.constant([position.layer], INT64) <= self.layer
