"""fixed: every row stops after the same layer and answers with that layer's exit alone.

The static rival of every adaptive rule at equal depth. No other exit is read; one that is linked into its layer is
computed with it all the same.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from edgebert.errors import ConfigError
from edgebert.policies import ExitPosition, Outputs, State, Verdict, log_probabilities

CHEAPER: dict[str, Literal["lower", "higher"]] = {"layer": "lower"}
GRID: list[dict[str, float]] = []


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        layer: Stop after this layer, counted from 1. None is the last one with an exit.
    """

    layer: int | None = None


class Policy:
    """The rule with its layer.

    Raises:
        ConfigError: The model has no exit after that layer.
    """

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.layer = exit_layers[-1] if config.layer is None else config.layer
        if self.layer not in exit_layers:
            known = ", ".join(map(str, exit_layers))
            raise ConfigError(f"policy fixed: layer: the model has exits after layers {known}, got {self.layer}.")

    def start(self, rows: int) -> State:
        """Nothing is remembered."""
        return {}

    def reads(self, position: ExitPosition) -> bool:
        """Only the one exit is read."""
        return position.layer == self.layer

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops every row."""
        scores = log_probabilities(outputs)
        return Verdict(state, np.ones(len(scores), np.bool_), scores)
