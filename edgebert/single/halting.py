"""halting: the row stops once the layers left cannot change its mixed answer; `slack` is an input, the bound is fixed.

The arithmetic is that of `edgebert/policies/halting.py`, in double precision as there.
"""

from __future__ import annotations

from edgebert.policies import ExitPosition
from edgebert.single import _rule
from edgebert.single._graph import DOUBLE, INT64
from edgebert.single._rule import Outputs, State, Verdict, probabilities, safe_log


class Rule(_rule.Rule):
    """The rule with its slack, float64 [1]."""

    stops = True

    def start(self) -> State:
        """All weight is still to come."""
        return {"remaining": self.graph.constant([1.0], DOUBLE)}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Mixes one unit's answer in and stops the row if nothing can change any more."""
        label = probabilities(outputs).cast(DOUBLE)
        before = state["remaining"]
        answer = label * before + state["answer"] * (1.0 - before) if "answer" in state else label
        remaining = outputs["halt"].cast(DOUBLE) * before
        ordered, _ = answer.top(self.graph.constant([2], INT64))
        best, second = ordered.columns(0, 1).reshape(1), ordered.columns(1, 2).reshape(1)
        left = position.exits_left
        kept = (1.0 - remaining) ** float(left)
        is_tight = self.config.bound == "tight"
        rival = second * kept + (1.0 - kept) if is_tight else second + remaining * float(left)
        finished = rival <= best * kept + self.knob("slack", self.config.slack)
        return Verdict({"answer": answer, "remaining": remaining}, finished, lambda: safe_log(answer))
