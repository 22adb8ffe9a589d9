"""never: no row stops early; the answer is the method's own at full depth."""

from __future__ import annotations

from edgebert.policies import ExitPosition
from edgebert.single import _rule
from edgebert.single._graph import BOOL
from edgebert.single._rule import Outputs, State, Verdict


class Rule(_rule.Rule):
    """The method's own rule, kept from stopping; without one, each exit's own answer."""

    def start(self) -> State:
        """Returns the own rule's state."""
        return self.own.start() if self.own else {}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Folds the own rule and stops nobody."""
        if self.own is None:
            return super().fold(state, outputs, position)
        verdict = self.own.fold(state, outputs, position)
        return Verdict(verdict.state, self.graph.constant([False], BOOL), verdict.scores)
