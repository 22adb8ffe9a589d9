"""What the engine did with a batch of rows: the answers, and what each row ran."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class Call(NamedTuple):
    """One call of a session: the graph's path and how many rows and tokens went in, padding included."""

    graph: str
    rows: int
    tokens: int


@dataclass
class Outcome:
    """What the engine did with a batch; every array has the batch's rows, in its order.

    Attributes:
        scores: Logits or log-probabilities, float [rows, ...] as the exits or the head give them; zeros while a row has
            no answer.
        exit_layer: The layer after which each row was answered, int64 [rows].
        path: Which layers ran on each row, bool [rows, layers].
        macs: Multiply-accumulates spent on each row's own tokens, float64 [rows].
        linear_macs: Those of them that are not between pairs of tokens, float64 [rows].
        chosen: Which pieces of each layer ran on each row, by what they were chosen from, bool [rows, layers, pieces].
        token_layers: How many layers each token went through, int64 [rows, tokens]; None where none can be dropped.
        calls: Every session call, in order.
    """

    scores: NDArray[Any]
    exit_layer: NDArray[np.int64]
    path: Mask
    macs: NDArray[np.float64]
    linear_macs: NDArray[np.float64]
    chosen: dict[str, Mask] = field(default_factory=dict)
    token_layers: NDArray[np.int64] | None = None
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def empty(cls, rows: int, layers: int) -> Outcome:
        """Returns an outcome in which nothing has happened yet."""
        return cls(
            scores=np.zeros((rows, 0)),
            exit_layer=np.zeros(rows, np.int64),
            path=np.zeros((rows, layers), np.bool_),
            macs=np.zeros(rows),
            linear_macs=np.zeros(rows),
        )

    @property
    def layers_run(self) -> NDArray[np.int64]:
        """How many layers ran on each row, int64 [rows]."""
        layers: NDArray[np.int64] = self.path.sum(axis=1)
        return layers

    @property
    def layer_tokens(self) -> NDArray[np.int64] | None:
        """How many tokens of each row went on from each layer, int64 [rows, layers]; None where none can be dropped."""
        if self.token_layers is None:
            return None
        went_on = np.zeros(self.path.shape, np.int64)
        for layer in range(self.path.shape[1]):
            went_on[:, layer] = (self.token_layers > layer).sum(axis=1)
        return went_on

    def answer(self, places: NDArray[np.int64], scores: NDArray[Any], layer: int) -> None:
        """Writes down the answers of some rows."""
        if self.scores.shape[1:] != scores.shape[1:]:
            self.scores = np.zeros((len(self.exit_layer), *scores.shape[1:]))
        self.scores[places] = scores
        self.exit_layer[places] = layer

    def choose(self, name: str, places: NDArray[np.int64], layer: int, pieces: Mask) -> None:
        """Writes down which pieces of a layer some rows run."""
        if name not in self.chosen:
            self.chosen[name] = np.zeros((*self.path.shape, pieces.shape[1]), np.bool_)
        self.chosen[name][places, layer - 1] = pieces

    def put(self, places: NDArray[np.int64], part: Outcome) -> None:
        """Writes down what happened to some rows that were a batch of their own, but for scores and token layers.

        Those of different batches may differ in size, and are joined once all are there: `edgebert.text.join_rows`.
        """
        for name, pieces in part.chosen.items():
            every = self.chosen.setdefault(name, np.zeros((len(self.path), *pieces.shape[1:]), np.bool_))
            every[places] = pieces
        self.exit_layer[places] = part.exit_layer
        self.path[places] = part.path
        self.macs[places] += part.macs
        self.linear_macs[places] += part.linear_macs
        self.calls.extend(part.calls)
