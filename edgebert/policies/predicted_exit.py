"""predicted_exit: a row stops after the layer that its tokens foretell, decided before the first layer.

The rule of GEEP (Frontiers of Computer Science 18(3), 2024) with the aggregations of our own that `prediction` names:
`expect` rounds the mean exit layer of the row's tokens, `mode` takes the layer that the tokens together find most
likely, `quantile` the first layer that a given share of their distribution has reached. A mean over tokens lies near
the middle whatever the row is; `gain` spreads the expected layers again.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from edgebert import policies
from edgebert.policies import Outputs, Wanted

CHEAPER: dict[str, Literal["lower", "higher"]] = {"offset": "lower", "quantile": "lower"}
_OFFSETS: list[dict[str, float | str]] = [
    {"prediction": "expect", "gain": gain, "offset": offset / 4}
    for gain in (1.0, 2.0, 4.0, 8.0)
    for offset in range(40, -41, -1)
]
_QUANTILES: list[dict[str, float | str]] = [
    {"prediction": "quantile", "quantile": quantile / 20} for quantile in range(19, 5, -1)
]
GRID = [*_OFFSETS, *_QUANTILES]
TIE = 1.0e-4
"""Counts give exact ties; what is nearer to one than this is one, so that rounding errors decide nothing."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knobs.

    Attributes:
        prediction: `expect`, `mode` or `quantile`.
        offset: Layers added to the predicted one, for `expect` and `mode`.
        gain: How many times farther from the middle layer the expected one is moved, for `expect`.
        quantile: Share of the distribution to cover, 0 to 1, for `quantile`.
        batch_exit: `own`: every row stops after its own layer. `homogeneous`: rows of other layers do not share its
            batch. `max`, as published: all rows of a batch stop after the deepest layer any of them needs, so that
            the answer depends on the batch.
    """

    prediction: Literal["expect", "mode", "quantile"] = "expect"
    offset: float = 0.0
    gain: float = 1.0
    quantile: float = 0.7
    batch_exit: Literal["own", "homogeneous", "max"] = "own"

    def __post_init__(self) -> None:
        if not np.isfinite(self.offset):
            raise ValueError(f"offset: expected a finite number, got {self.offset}")
        if not 0 < self.gain < np.inf:
            raise ValueError(f"gain: expected more than 0, got {self.gain}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile: expected more than 0, at most 1, got {self.quantile}")


class Policy(policies.Policy):
    """The rule with its knobs.

    The plan's graph gives the mean over the row's tokens of their exit distributions, `exit_share`, and of their
    logarithms, `exit_log_share`, both float [rows, layers].
    """

    needs = frozenset({"exit_share", "exit_log_share"})

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.config = config
        self.needs_equal_plans = config.batch_exit == "homogeneous"

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Predicts every row's exit layer."""
        share = np.asarray(outputs["exit_share"], np.float64)
        numbers = np.arange(1, layers + 1)
        if self.config.prediction == "expect":
            middle = (layers + 1) / 2
            expected = middle + self.config.gain * (share @ numbers - middle)
            depth = np.ceil(expected + self.config.offset - 0.5 - TIE)
        elif self.config.prediction == "mode":
            shares = outputs["exit_log_share"]
            likely = (shares >= shares.max(axis=1, keepdims=True) - TIE).argmax(axis=1) + 1
            depth = np.ceil(likely + self.config.offset - TIE)
        else:
            depth = (share.cumsum(axis=1) < self.config.quantile - TIE).sum(axis=1) + 1
        wanted: Wanted = numbers <= np.clip(depth, 1, layers)[:, None]
        return wanted

    def settle(self, wanted: Wanted) -> Wanted:
        """With `max`, every row of a batch runs as deep as the deepest."""
        return wanted | wanted.any(axis=0) if self.config.batch_exit == "max" else wanted
