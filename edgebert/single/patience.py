"""patience: the row stops once `patience` exits in a row agreed; values agree within `tolerance`. Both are inputs."""

from __future__ import annotations

from edgebert.policies import ExitPosition
from edgebert.single import _rule
from edgebert.single._graph import INT64
from edgebert.single._rule import Outputs, State, Verdict


class Rule(_rule.Rule):
    """The rule with its patience, int64 [1], and for single values its tolerance, float64 [1]."""

    stops = True

    def start(self) -> State:
        """No agreement yet, and no answer to agree with."""
        return {"agreements": self.graph.constant([0], INT64)}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Counts agreements and stops the row if there were enough."""
        scores = self.own_scores(outputs)
        is_value = self.labels == 1
        answer = scores.reshape(1) if is_value else scores.argmax()
        agreements = state["agreements"]
        if "answer" in state:
            before = state["answer"]
            if is_value:
                agrees = (answer - before).apply("Abs") < self.knob("tolerance", self.config.tolerance)
            else:
                agrees = answer.equals(before)
            agreements = (agreements + 1) * agrees.cast(INT64)
        finished = self.knob("patience", self.config.patience, whole=True) <= agreements
        return Verdict({"answer": answer, "agreements": agreements}, finished, lambda: scores)
