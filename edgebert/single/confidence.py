"""confidence: the row stops at the first exit whose largest probability reaches the input `threshold`."""

from __future__ import annotations

from edgebert.policies import ExitPosition
from edgebert.single import _rule
from edgebert.single._rule import Outputs, State, Verdict, probabilities, safe_log


class Rule(_rule.Rule):
    """The rule with its threshold, float64 [1]."""

    stops = True

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops the row if its largest probability is at least the threshold."""
        given = probabilities(outputs)
        finished = given.max() >= self.knob("threshold", self.config.threshold)
        return Verdict(state, finished, lambda: safe_log(given))
