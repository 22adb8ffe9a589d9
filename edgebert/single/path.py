"""path: the row runs the layers it is told to; the input is `layers`, their numbers, counted from 1."""

from __future__ import annotations

from edgebert.policies import GatePosition
from edgebert.single import _rule
from edgebert.single._graph import INT64, Value
from edgebert.single._rule import Outputs


class Rule(_rule.Rule):
    """The rule with its path, int64 [any number of layers]."""

    @property
    def layers(self) -> Value:
        """The knob."""
        default = self.exit_layers if self.config.layers is None else str(self.config.layers).split(",")
        return self.knob("layers", [int(layer) for layer in default], whole=True, size="path")

    def plan(self, outputs: Outputs, layers: int) -> Value:
        """The row runs the path."""
        numbers = self.graph.constant([[layer] for layer in range(1, layers + 1)], INT64)
        return numbers.equals(self.layers).any().reshape(1, layers)

    def gate(self, outputs: Outputs, position: GatePosition, executed: Value) -> Value:
        """The row runs the path."""
        return self.layers.equals(position.layer).any().reshape(1)
