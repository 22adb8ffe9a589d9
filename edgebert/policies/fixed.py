"""fixed: every row stops after the same layer and answers with that layer's exit alone.

The static rival of every adaptive rule at equal depth. No other exit is read; one that is linked into its layer is
computed with it all the same. Where a method plans layers, every row runs the first ones up to that depth.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.errors import ConfigError
from edgebert.policies import ExitPosition, GatePosition, Outputs, State, Verdict, Wanted, own_scores, rows_of

CHEAPER: dict[str, Literal["lower", "higher"]] = {"layer": "lower"}
GRID: list[dict[str, float]] = []


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        layer: Stop after this layer, counted from 1. None is the last one with an exit.
    """

    layer: int | None = None


class Policy(policies.Policy):
    """The rule with its layer.

    Raises:
        ConfigError: The model cannot stop after that layer.
    """

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        if not exit_layers:
            raise ConfigError("policy fixed: the model has no layer that it can stop after; use the policy never.")
        self.layer = exit_layers[-1] if config.layer is None else config.layer
        if self.layer not in exit_layers:
            known = ", ".join(map(str, exit_layers))
            raise ConfigError(f"policy fixed: layer: the model can stop after layers {known}, got {self.layer}.")

    def reads(self, position: ExitPosition) -> bool:
        """Only the one exit is read."""
        return position.layer == self.layer

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops every row."""
        return Verdict(state, np.ones(rows_of(outputs), np.bool_), lambda: own_scores(outputs))

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Every row runs the first layers."""
        return super().plan(outputs, layers) & (np.arange(1, layers + 1) <= self.layer)

    def gate(self, outputs: Outputs, position: GatePosition, executed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Every row runs the first layers."""
        return np.full(len(executed), position.layer <= self.layer)
