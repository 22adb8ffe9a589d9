"""width: every row runs the pieces of each layer that its predictors score highest, and always the same number of them.

The run-time rule of TBERT (DATE 2023): exactly the k best of n, so that the share of the work is known beforehand and
needs no threshold. The heads and the feed-forward blocks (or neurons) of a layer are chosen from apart.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.policies import Chosen, SelectPosition

CHEAPER: dict[str, Literal["lower", "higher"]] = {"width": "lower"}
# Above three quarters next to nothing is saved: in pieces, a layer of MiniLM-L6's shape takes longer than whole.
GRID = [{"width": 1.0}, *({"width": width / 20} for width in range(15, 3, -1))]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knobs.

    Attributes:
        width: Share of the pieces that run, more than 0, at most 1; at least one of each kind does.
        exact_budget: Let the last choice of a layer make up for the rounding of those before it, and for what the
            predictors cost, so that `width` is the share of the layer's multiply-accumulates.
    """

    width: float = 0.5
    exact_budget: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.width <= 1:
            raise ValueError(f"width: expected more than 0, at most 1, got {self.width}")


class Policy(policies.Policy):
    """The rule with its knobs."""

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.config = config
        self.selects = config.width < 1

    def select(self, scores: NDArray[Any], position: SelectPosition, tokens: NDArray[np.int64]) -> Chosen:
        """Takes the best pieces; of equal ones the first."""
        config, order = self.config, np.argsort(-scores, axis=1, kind="stable")
        chosen = np.zeros(scores.shape, np.bool_)
        if config.exact_budget:
            counts = kept_counts(config.width, position, tokens, exact_budget=True)
            chosen[np.arange(len(scores))[:, None], order] = np.arange(scores.shape[1]) < counts[:, None]
        else:
            chosen[np.arange(len(scores))[:, None], order[:, : kept_count(config.width, scores.shape[1])]] = True
        return chosen


def kept_counts(
    width: float, position: SelectPosition, tokens: NDArray[np.int64], *, exact_budget: bool = False
) -> NDArray[np.int64]:
    """Returns how many pieces each row runs, int64 [rows].

    Args:
        width: See `Config`.
        position: Where pieces are chosen.
        tokens: How many tokens each row has, int64 [rows].
        exact_budget: See `Config`.
    """
    choice = position.choice
    if width == 1 or not exact_budget or choice != position.all_choices[-1]:
        return np.full(len(tokens), kept_count(width, choice.pieces))
    left = -position.predictors.of(tokens)
    for other in position.all_choices:
        kept = 0 if other == choice else kept_count(width, other.pieces)
        left += (width * other.pieces - kept) * other.each.of(tokens)
    count: NDArray[np.int64] = np.rint(left / choice.each.of(tokens)).astype(np.int64)
    return np.clip(count, 1, choice.pieces)


def kept_count(width: float, pieces: int) -> int:
    """Returns how many of some pieces a width keeps: the nearest number, a half rounded to the even, at least 1."""
    return max(1, round(width * pieces))
