"""bypass: a row leaves out every layer that its planner gives less than `delta`.

The run-time rule of DPBERT (https://arxiv.org/abs/2308.00108): a layer is included or bypassed, for each input on its
own. A path is never empty: a row that has left out everything runs the last layer, or the one its plan likes best.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.policies import GatePosition, Outputs, Wanted

CHEAPER: dict[str, Literal["lower", "higher"]] = {"delta": "higher"}
GRID = [{"delta": delta} for delta in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        delta: Run a layer whose inclusion probability is at least this, 0 to 1. At 0 every layer runs.
    """

    delta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta: expected 0 to 1, got {self.delta}")


class Policy(policies.Policy):
    """The rule with its threshold. Planners give `include`: probabilities, float [rows] or [rows, layers]."""

    needs = frozenset({"include"})

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.delta = config.delta

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Decides the whole path at once."""
        include = outputs["include"]
        wanted: Wanted = include >= self.delta
        empty = ~wanted.any(axis=1)
        wanted[empty, include[empty].argmax(axis=1)] = True
        return wanted

    def gate(self, outputs: Outputs, position: GatePosition, executed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decides one layer; the last one runs for a row that has run none."""
        wanted: NDArray[np.bool_] = outputs["include"] >= self.delta
        return wanted if position.layers_left else wanted | (executed == 0)
