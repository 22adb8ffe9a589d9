"""entropy: the row stops at the first exit whose entropy is below the input `threshold`."""

from __future__ import annotations

import math

from edgebert.policies import ExitPosition
from edgebert.single import _rule
from edgebert.single._graph import DOUBLE
from edgebert.single._rule import Outputs, State, Verdict, probabilities, safe_log


class Rule(_rule.Rule):
    """The rule with its threshold, float64 [1]; its scale is fixed in the file."""

    stops = True

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops the row if its entropy is below the threshold."""
        given = probabilities(outputs)
        entropy = -(given.cast(DOUBLE) * safe_log(given)).sum()
        if self.config.scale == "normalised":
            entropy = entropy / math.log(self.labels)
        finished = entropy < self.knob("threshold", self.config.threshold)
        return Verdict(state, finished, lambda: safe_log(given))
