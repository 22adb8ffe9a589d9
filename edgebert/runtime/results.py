"""What the model answers: one result per text, and the raw answer of `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.tasks import Candidate
from edgebert.text import Encoded


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
        return _plain(self)


@dataclass(frozen=True)
class Span:
    """A possible answer: its words, their probability, and their first character in the passage and the one after."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The answer to one question, and what it cost.

    Attributes:
        text: The words of the passage, without white space around them; empty where the passage has no words.
        score: Their probability, 0 to 1, among all spans that could be an answer, in all windows.
        start: Their first character in the passage.
        end: The character after their last.
        windows: How many windows the passage took.
        layers_run: How many layers ran on a window, on average.
        cost_ratio: Multiply-accumulates spent, over those of all layers on the same windows.
        tokens: Tokens of all windows together.
        truncated: Whether the end of the question was cut off.
        layer_tokens: How many tokens of all windows went on from each layer; None where none can be dropped.
        top: The `top_k` best answers of different texts, when asked for.
    """

    text: str
    score: float
    start: int
    end: int
    windows: int
    layers_run: float
    cost_ratio: float
    tokens: int
    truncated: bool
    layer_tokens: tuple[int, ...] | None = None
    top: tuple[Span, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, `top` only when it was asked for, `layer_tokens` only where there are."""
        return _plain(self)


@dataclass(frozen=True)
class Cost:
    """What one text cost.

    Attributes:
        rows: How many rows it took.
        exit_layer: The deepest layer after which one of them stopped, counted from 1.
        layers_run: How many layers ran on all of them together.
        cost_ratio: Multiply-accumulates spent, over those of all layers on the same rows.
        tokens: Their length in tokens.
        truncated: Whether the end of the text was cut off.
        layer_tokens: How many of these tokens went on from each layer; None where none can be dropped.
    """

    rows: int
    exit_layer: int
    layers_run: int
    cost_ratio: float
    tokens: int
    truncated: bool
    layer_tokens: tuple[int, ...] | None = None


def costs_of(
    rows: Sequence[Encoded],
    path: NDArray[np.bool_],
    exit_layer: NDArray[np.int64],
    macs: NDArray[np.float64],
    full_macs: NDArray[np.float64],
    layer_tokens: NDArray[np.int64] | None = None,
) -> list[Cost]:
    """Returns what each text cost, from what happened to its rows; every array has one entry per row."""
    layers_run = path.sum(axis=1).tolist()
    exits, spent, full = exit_layer.tolist(), macs.tolist(), full_macs.tolist()  # numbers: arrays are slow one by one
    costs = []
    for _, places in groupby(range(len(rows)), key=lambda place: rows[place].text):
        own = list(places)
        costs.append(
            Cost(
                rows=len(own),
                exit_layer=max(exits[place] for place in own),
                layers_run=sum(layers_run[place] for place in own),
                cost_ratio=sum(spent[place] for place in own) / sum(full[place] for place in own),
                tokens=sum(len(rows[place].ids) for place in own),
                truncated=any(rows[place].truncated for place in own),
                layer_tokens=None if layer_tokens is None else tuple(layer_tokens[own].sum(axis=0).tolist()),
            )
        )
    return costs


def prediction_of(candidates: Sequence[Candidate], cost: Cost, *, with_top: bool) -> Prediction:
    """Returns the result for a text from its best labels."""
    return Prediction(
        label=candidates[0].text,
        score=candidates[0].score,
        exit_layer=cost.exit_layer,
        layers_run=cost.layers_run,
        cost_ratio=cost.cost_ratio,
        tokens=cost.tokens,
        truncated=cost.truncated,
        layer_tokens=cost.layer_tokens,
        top=tuple(LabelScore(candidate.text, candidate.score) for candidate in candidates) if with_top else None,
    )


def answer_of(candidates: Sequence[Candidate], cost: Cost, *, with_top: bool) -> Answer:
    """Returns the result for a question from its best spans."""
    best = candidates[0]
    return Answer(
        text=best.text,
        score=best.score,
        start=best.start,
        end=best.end,
        windows=cost.rows,
        layers_run=cost.layers_run / cost.rows,
        cost_ratio=cost.cost_ratio,
        tokens=cost.tokens,
        truncated=cost.truncated,
        layer_tokens=cost.layer_tokens,
        top=tuple(Span(*candidate) for candidate in candidates) if with_top else None,
    )


@dataclass(frozen=True)
class Forward:
    """The raw answer for a batch of token ids.

    Attributes:
        logits: Logits or log-probabilities, float [rows, labels]; of a regression model, the values, float [rows, 1];
            in question answering, the two logits of each token, float [rows, tokens, 2].
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


def _plain(result: Prediction | Answer) -> dict[str, Any]:
    """Returns the fields as plain data, without those that were not asked for or mean nothing here."""
    fields = asdict(result)
    for name in ("layer_tokens", "top"):
        if fields[name] is None:
            del fields[name]
    if result.top is not None:
        fields["top"] = [asdict(entry) for entry in result.top]
    return fields
