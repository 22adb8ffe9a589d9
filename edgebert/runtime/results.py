"""What the model answers: one prediction per text, and the raw answer of `forward`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelScore:
    """A label and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one text, and what it cost.

    Attributes:
        label: The most probable label; of a regression model, the name of its value.
        score: The label's probability, 0 to 1; of a regression model, the value.
        exit_layer: The layer after which the row stopped, counted from 1.
        layers_run: How many layers ran.
        cost_ratio: Multiply-accumulates spent, over those of all layers on the same text.
        tokens: Length of the text in tokens, after truncation.
        truncated: Whether the end of the text was cut off.
        layer_tokens: How many tokens went on from each layer; None where none can be dropped.
        top: The `top_k` most probable labels, when asked for.
    """

    label: str
    score: float
    exit_layer: int
    layers_run: int
    cost_ratio: float
    tokens: int
    truncated: bool
    layer_tokens: tuple[int, ...] | None = None
    top: tuple[LabelScore, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, `top` only when it was asked for, `layer_tokens` only where there are."""
        fields = asdict(self)
        if self.layer_tokens is None:
            del fields["layer_tokens"]
        if self.top is None:
            del fields["top"]
        else:
            fields["top"] = [asdict(entry) for entry in self.top]
        return fields


@dataclass(frozen=True)
class Forward:
    """The raw answer for a batch of token ids.

    Attributes:
        logits: Logits or log-probabilities, float [rows, labels]; of a regression model, the values, float [rows, 1].
        exit_layer: The layer after which each row stopped, int64 [rows].
        path: Which layers ran on each row, bool [rows, layers].
        cost_ratio: Multiply-accumulates spent, over those of all layers, float64 [rows].
        chosen: Which pieces of each layer ran on each row, by what they were chosen from, bool [rows, layers, pieces].
        token_layers: How many layers each token went through, int64 [rows, tokens]; None where none can be dropped.
    """

    logits: NDArray[Any]
    exit_layer: NDArray[np.int64]
    path: NDArray[np.bool_]
    cost_ratio: NDArray[np.float64]
    chosen: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    token_layers: NDArray[np.int64] | None = None

    @property
    def scores(self) -> NDArray[Any]:
        """The same as `logits`."""
        return self.logits

    @property
    def layers_run(self) -> NDArray[np.int64]:
        """How many layers ran on each row, int64 [rows]."""
        layers: NDArray[np.int64] = self.path.sum(axis=1)
        return layers
