"""lengths: after each layer's attention a row goes on with a given number of its tokens, those that received the most.

The length configuration of the Length-Adaptive Transformer (Kim and Cho, 2021, https://arxiv.org/abs/2010.07003) that
Dynamic-TinyBERT (Guskin et al., 2021, https://arxiv.org/abs/2111.09645) searches for. Published configurations are
numbers of tokens for one input length; a row that is shorter keeps at most what it has. Shares are of each row's own
length.
"""

from __future__ import annotations

import itertools
import re
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import policies
from edgebert.errors import ConfigError
from edgebert.policies import DropPosition

CHEAPER: dict[str, Literal["lower", "higher"]] = {"lengths": "lower"}
GRID: list[dict[str, str]] = []
SHORTEST = 2
"""Fewest tokens a share leaves, as in the published code."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The knob.

    Attributes:
        lengths: Tokens that go on from each layer, first layer first, with commas between: whole numbers are tokens
            ("269,253,252"), numbers with a point shares of the row's own length ("0.8,0.5,0.25"). The last one stands
            for all later layers. None keeps every token.
    """

    lengths: str | int | float | None = None


class Policy(policies.Policy):
    """The rule with its lengths.

    Raises:
        ConfigError: They are no lengths, or grow.
    """

    def __init__(self, config: Config, exit_layers: tuple[int, ...], rule: object = None) -> None:
        self.lengths = [] if config.lengths is None else read_lengths(str(config.lengths))

    def keep(self, position: DropPosition, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the tokens that go on, of rows that began with some number of them, int64 [rows]."""
        if not self.lengths:
            return tokens
        length = self.lengths[min(position.layer, len(self.lengths)) - 1]
        if isinstance(length, int):
            return np.full(len(tokens), length)
        # Shares are decimal numbers: 0.1 of 30 tokens is 3, not 4 because 0.1 * 30 is a little more than 3.
        shares: NDArray[np.int64] = np.ceil(np.round(length * tokens, 9)).astype(np.int64)
        return np.maximum(shares, SHORTEST)


def read_lengths(text: str) -> list[int | float]:
    """Reads lengths: int are tokens, float shares.

    Raises:
        ConfigError: They are no lengths, are mixed, or grow from layer to layer.
    """
    parts = [part.strip() for part in text.split(",")]
    if all(re.fullmatch("[0-9]+", part) for part in parts):
        lengths: list[int | float] = [int(part) for part in parts]
        is_good = min(lengths) >= 1
    else:
        is_good = all(re.fullmatch(r"[0-9]*\.[0-9]+", part) for part in parts)
        lengths = [float(part) for part in parts] if is_good else []
        is_good = is_good and min(lengths) > 0 and max(lengths) <= 1
    if not is_good or any(after > before for before, after in itertools.pairwise(lengths)):
        raise ConfigError(
            'policy lengths: lengths: expected tokens for each layer such as "64,32,16", or shares up to 1.0 such as '
            f'"0.8,0.5", none larger than the one before it, got {text!r}.'
        )
    return lengths
