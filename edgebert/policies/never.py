"""never: no row stops early and none leaves a layer out.

Every exit, gate and plan is still evaluated, and the answer is the method's own at full depth.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from edgebert import policies
from edgebert.policies import ExitPosition, Outputs, State, Verdict

CHEAPER: dict[str, Literal["lower", "higher"]] = {}
GRID: list[dict[str, float]] = []


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is no knob."""


class Policy(policies.Policy):
    """The method's own rule, kept from stopping; without one, each exit's own answer."""

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: policies.Policy | None = None) -> None:
        self.rule = rule

    def start(self, rows: int) -> State:
        """Returns the own rule's state."""
        return self.rule.start(rows) if self.rule else {}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Folds the own rule and stops nobody."""
        if self.rule is None:
            return super().fold(state, outputs, position)
        verdict = self.rule.fold(state, outputs, position)
        return Verdict(verdict.state, np.zeros_like(verdict.finished), verdict.scores)
