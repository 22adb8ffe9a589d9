"""path: every row runs the same layers, those it is told to. The static rival of a planner at equal cost."""

from __future__ import annotations

import re
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.errors import ConfigError
from edgebert.policies import GatePosition, Outputs, Wanted

CHEAPER: dict[str, Literal["lower", "higher"]] = {}
GRID: list[dict[str, float]] = []


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        layers: The layers to run, counted from 1, such as "1,2,6" (or 6 alone). None runs all of them.
    """

    layers: str | int | None = None


class Policy(policies.Policy):
    """The rule with its path.

    Raises:
        ConfigError: The path names no layer, or one that the model does not have.
    """

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        given = ",".join(map(str, exit_layers)) if config.layers is None else str(config.layers)
        parts = [part.strip() for part in given.split(",")]
        if not all(re.fullmatch("[0-9]+", part) and int(part) in exit_layers for part in parts):
            known = ", ".join(map(str, exit_layers))
            raise ConfigError(
                f'policy path: layers: expected some of {known} with commas between, such as "1,2", got {given!r}.'
            )
        self.layers = {int(part) for part in parts}

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Every row runs the path."""
        return super().plan(outputs, layers) & np.isin(np.arange(1, layers + 1), list(self.layers))

    def gate(self, outputs: Outputs, position: GatePosition, executed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Every row runs the path."""
        return np.full(len(executed), position.layer in self.layers)
