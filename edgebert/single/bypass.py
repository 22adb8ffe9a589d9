"""bypass: the row leaves out every layer that its planner gives less than the input `delta`, but never all of them."""

from __future__ import annotations

from edgebert.policies import GatePosition
from edgebert.single import _rule
from edgebert.single._graph import INT64, Value
from edgebert.single._rule import Outputs


class Rule(_rule.Rule):
    """The rule with its threshold, float64 [1]."""

    def plan(self, outputs: Outputs, layers: int) -> Value:
        """Decides the whole path at once; an empty one gets the layer its plan likes best."""
        include = outputs["include"]
        wanted = include >= self.knob("delta", self.config.delta)
        best = include.argmax(keep=True).equals(self.graph.constant([list(range(layers))], INT64))
        return wanted | (best & ~wanted.any().reshape(1, 1))

    def gate(self, outputs: Outputs, position: GatePosition, executed: Value) -> Value:
        """Decides one layer; the last one runs for a row that has run none."""
        wanted = outputs["include"] >= self.knob("delta", self.config.delta)
        return wanted if position.layers_left else wanted | executed.equals(0)
