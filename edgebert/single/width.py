"""width: in each layer the best pieces run, as many as the input `width` says, a share of more than 0, at most 1.

The arithmetic is that of `edgebert/policies/width.py`; whether the budget is exact is fixed in the file.
"""

from __future__ import annotations

from edgebert.bundle.manifest import Macs
from edgebert.policies import SelectPosition
from edgebert.single import _rule
from edgebert.single._graph import BOOL, DOUBLE, INT64, Value


class Rule(_rule.Rule):
    """The rule with its width, float64 [1]. Layers run in pieces, at width 1 too."""

    selects = True

    def select(self, scores: Value, position: SelectPosition, tokens: Value) -> Value:
        """Takes the best pieces; of equal ones the first."""
        count = self._count(position, tokens)
        _, places = scores.top(count)
        pieces = position.choice.pieces
        is_kept = self.graph.constant([[[piece] for piece in range(pieces)]], INT64)
        return is_kept.equals(places.reshape(1, 1, -1)).any()

    def _count(self, position: SelectPosition, tokens: Value) -> Value:
        """Returns how many pieces run, int64 [1]."""
        choice, width = position.choice, self.knob("width", self.config.width)
        kept = self._kept(choice.pieces)
        if not self.config.exact_budget or choice != position.all_choices[-1]:
            return kept.cast(INT64)
        left = -_cost(position.predictors, tokens)
        for other in position.all_choices:
            share = width * float(other.pieces)
            left = left + (share if other == choice else share - self._kept(other.pieces)) * _cost(other.each, tokens)
        count = (left / _cost(choice.each, tokens)).apply("Round").at_least(1.0).at_most(float(choice.pieces))
        is_all = (width >= 1.0).cast(BOOL)
        return is_all.apply("Where", kept, count, kind=DOUBLE).cast(INT64)

    def _kept(self, pieces: int) -> Value:
        """Returns the number of pieces nearest to the width, at least 1, float64 [1]."""
        return (self.knob("width", self.config.width) * float(pieces)).apply("Round").at_least(1.0)


def _cost(macs: Macs, tokens: Value) -> Value:
    """Returns multiply-accumulates of a row of so many tokens, float64 [1]."""
    length = tokens.cast(DOUBLE)
    return length * float(macs.token) + float(macs.row) + length * length * float(macs.token_pair)
