"""entropy: a row stops at the first exit whose entropy is below the threshold.

`scale: normalised` divides the entropy by its largest possible value, ln of the number of labels, as FastBERT does
(Liu et al., 2020, https://arxiv.org/abs/2004.02178, whose `speed` is the threshold); `nats` is DeeBERT's (Xin et al.,
2020, https://arxiv.org/abs/2004.12993). Equality carries on in both. The answer is that exit's own.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from edgebert import policies
from edgebert.policies import ExitPosition, Outputs, State, Verdict, probabilities, safe_log

CHEAPER: dict[str, Literal["lower", "higher"]] = {"threshold": "higher"}
GRID = [
    {"threshold": threshold}
    for threshold in (
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.03,
        0.05,
        0.07,
        0.1,
        0.13,
        0.16,
        0.2,
        0.25,
        0.3,
        0.35,
        0.4,
        0.45,
        0.5,
        0.55,
        0.6,
        0.65,
        0.7,
        0.8,
        0.9,
        1.0,
        1.5,
        2.0,
        3.0,
        4.0,
        5.0,
    )
]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knobs.

    Attributes:
        threshold: Stop at an entropy below this; 0 stops no row early.
        scale: `normalised` measures entropy from 0 to 1, `nats` from 0 to ln of the number of labels.
    """

    threshold: float = 0.3
    scale: Literal["normalised", "nats"] = "normalised"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: expected 0 or more, got {self.threshold}")


class Policy(policies.Policy):
    """The rule with its threshold and scale."""

    needs_probabilities = True

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.config = config

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Stops the rows whose entropy is below the threshold."""
        given = probabilities(outputs)
        return Verdict(state, self._entropy(given) < self.config.threshold, lambda: safe_log(given))

    def certainty(self, outputs: Outputs) -> NDArray[Any]:
        """Returns the entropy, negative."""
        return -self._entropy(probabilities(outputs))

    def stop_above(self, certainty: float) -> dict[str, float]:
        """Returns the threshold that the entropy must stay below."""
        return {"threshold": -certainty}

    def _entropy(self, given: NDArray[Any]) -> NDArray[Any]:
        entropy: NDArray[Any] = -(given * safe_log(given)).sum(axis=-1)
        return entropy / math.log(given.shape[-1]) if self.config.scale == "normalised" else entropy
