"""lengths: after each layer's attention a given number of tokens goes on, those that received the most.

The input is `lengths`, one number for each layer: tokens, or shares of the row's own, whichever the file was made with.
"""

from __future__ import annotations

from edgebert.policies import DropPosition
from edgebert.policies.lengths import SHORTEST, read_lengths
from edgebert.single import _rule
from edgebert.single._graph import DOUBLE, INT64, Value


class Rule(_rule.Rule):
    """The rule with its lengths, float64 [layers]: shares, or whole numbers of tokens."""

    drops = True

    def keep(self, position: DropPosition, tokens: Value) -> Value:
        """Returns the tokens that go on."""
        lengths = [1.0] if self.config.lengths is None else read_lengths(str(self.config.lengths))
        is_share = isinstance(lengths[0], float)
        every_layer = [*lengths, *[lengths[-1]] * position.layers][: position.layers]
        knob = self.knob("lengths", every_layer, whole=not is_share, size=position.layers)
        length = knob.take(self.graph.constant([position.layer - 1], INT64), axis=0)
        if not is_share:
            return length
        # As in the policy: 0.1 of 30 tokens is 3, though 0.1 * 30 is a little more than 3.
        share = ((length * tokens.cast(DOUBLE)) * 1.0e9).apply("Round") / 1.0e9
        return share.apply("Ceil").cast(INT64).at_least(SHORTEST)
