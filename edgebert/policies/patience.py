"""patience: a row stops once `patience` exits in a row agreed with the exit before them.

Zhou et al., 2020, "BERT Loses Patience" (https://arxiv.org/abs/2006.04152). The earliest stop is thus at exit
`patience` + 1. Labels agree when they are equal; the single values of a regression when they differ by less than
`tolerance`. The answer is that exit's own. The official code counts for a batch as a whole; here each row counts.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from edgebert import policies
from edgebert.policies import ExitPosition, Outputs, State, Verdict, own_scores

CHEAPER: dict[str, Literal["lower", "higher"]] = {"patience": "lower"}
GRID = [{"patience": patience} for patience in range(24, 0, -1)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knobs.

    Attributes:
        patience: How many agreements in a row it takes.
        tolerance: Single values that differ by less than this agree; labels do not use it.
    """

    patience: int = 3
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience: expected 1 or more, got {self.patience}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: expected 0 or more, got {self.tolerance}")


class Policy(policies.Policy):
    """The rule with its patience and tolerance."""

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.config = config

    def start(self, rows: int) -> State:
        """No agreement yet, and no answer to agree with."""
        return {"agreements": np.zeros(rows, np.int64)}

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Counts who agrees with the exit before and stops the rows that did so often enough."""
        scores = own_scores(outputs)
        is_value = scores.shape[-1] == 1
        answer = scores[:, 0] if is_value else scores.argmax(axis=-1)
        agreements = state["agreements"]
        if "answer" in state:
            before = state["answer"]
            agrees = np.abs(answer - before) < self.config.tolerance if is_value else answer == before
            agreements = np.where(agrees, agreements + 1, 0)
        return Verdict({"answer": answer, "agreements": agreements}, agreements >= self.config.patience, lambda: scores)
