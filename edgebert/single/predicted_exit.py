"""predicted_exit: the row stops after the layer its tokens foretell.

The kind of prediction is fixed in the file; its inputs are `offset` and `gain`, `offset`, or `quantile`. For one row
all kinds of `batch_exit` are the same. The arithmetic is that of `edgebert/policies/predicted_exit.py`.
"""

from __future__ import annotations

from edgebert.policies.predicted_exit import TIE
from edgebert.single import _rule
from edgebert.single._graph import DOUBLE, FLOAT, INT64, Value
from edgebert.single._rule import Outputs


class Rule(_rule.Rule):
    """The rule with its knobs, float64 [1] each."""

    def plan(self, outputs: Outputs, layers: int) -> Value:
        """Predicts the exit layer."""
        config, share = self.config, outputs["exit_share"].cast(DOUBLE)
        numbers = self.graph.constant([list(range(1, layers + 1))], DOUBLE)
        if config.prediction == "expect":
            middle = (layers + 1) / 2
            expected = ((share * numbers).sum() - middle) * self.knob("gain", config.gain) + middle
            depth = (expected + self.knob("offset", config.offset) - (0.5 + TIE)).apply("Ceil")
        elif config.prediction == "mode":
            shares = outputs["exit_log_share"]
            is_likely = shares >= shares.max(keep=True) - TIE
            likely = is_likely.cast(FLOAT).argmax().cast(DOUBLE) + 1.0
            depth = (likely + self.knob("offset", config.offset) - TIE).apply("Ceil")
        else:
            covered = share.apply("CumSum", self.graph.constant(1, INT64))
            is_short = covered < self.knob("quantile", config.quantile) - TIE
            depth = is_short.cast(INT64).sum().cast(DOUBLE) + 1.0
        return numbers <= depth.at_least(1.0).at_most(float(layers))
