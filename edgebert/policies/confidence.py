"""confidence: a row stops at the first exit whose largest probability reaches the threshold.

Schwartz et al., 2020, "The Right Tool for the Job" (https://arxiv.org/abs/2004.07453). The answer is that exit's own.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.policies import ExitPosition, Outputs, State, Verdict, probabilities, safe_log

CHEAPER: dict[str, Literal["lower", "higher"]] = {"threshold": "lower"}
GRID = [
    {"threshold": threshold}
    for threshold in (
        0.999,
        0.998,
        0.997,
        0.995,
        0.99,
        0.985,
        0.98,
        0.97,
        0.96,
        0.95,
        0.94,
        0.93,
        0.92,
        0.91,
        0.9,
        0.88,
        0.86,
        0.84,
        0.82,
        0.8,
        0.75,
        0.7,
        0.65,
        0.6,
        0.5,
        0.4,
        0.3,
        0.2,
        0.1,
    )
]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        threshold: Stop at a probability of at least this, 0 to 1. Above 1, up to 2, no row stops early.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold: expected 0 to 1, or at most 2 to stop no row, got {self.threshold}")


class Policy(policies.Policy):
    """The rule with its threshold."""

    needs_probabilities = True

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.threshold = config.threshold

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops the rows whose largest probability is at least the threshold."""
        given = probabilities(outputs)
        return Verdict(state, given.max(axis=-1) >= self.threshold, lambda: safe_log(given))

    def certainty(self, outputs: Outputs) -> NDArray[Any]:
        """Returns the largest probability."""
        largest: NDArray[Any] = probabilities(outputs).max(axis=-1)
        return largest

    def stop_above(self, certainty: float) -> dict[str, float]:
        """Returns the next larger number as the threshold, which a row must reach; exits give single precision."""
        return {"threshold": float(np.nextafter(np.float32(certainty), np.float32(np.inf)))}
