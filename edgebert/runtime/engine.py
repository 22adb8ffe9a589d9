"""The conditional loop: interprets a bundle's program on a batch of rows. It knows kinds of steps, never methods.

A row is alive until a policy or a head gives its answer. Every value a step makes has rows on axis 0; when rows
leave, all values and the policy's state are gathered, so that finished rows cost nothing from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Step
from edgebert.policies import ExitPosition, Policy, State
from edgebert.runtime.sessions import Graph
from edgebert.text import Values


@dataclass(frozen=True)
class Call:
    """One call of a session: the graph's path and how many rows and tokens went in, padding included."""

    graph: str
    rows: int
    tokens: int


@dataclass
class Outcome:
    """What the engine did with a batch; every array has the batch's rows, in its order.

    Attributes:
        scores: Logits or log-probabilities, float [rows, labels].
        exit_layer: The layer after which each row stopped, int64 [rows].
        layers_run: How many layers ran on each row, int64 [rows].
        macs: Multiply-accumulates spent on each row's own tokens, float64 [rows].
        calls: Every session call, in order.
    """

    scores: NDArray[Any]
    exit_layer: NDArray[np.int64]
    layers_run: NDArray[np.int64]
    macs: NDArray[np.float64]
    calls: list[Call] = field(default_factory=list)


@dataclass
class _Rows:
    """The rows still alive: their places in the batch, their values, and what the policy remembers.

    `finished` says which of them have their answer; None while none has. `spent` counts, for every row of the batch,
    the multiply-accumulates of the steps it went through as coefficients of 1, length and length squared.
    """

    index: NDArray[np.int64]
    values: Values
    state: State
    spent: NDArray[np.float64]
    finished: NDArray[np.bool_] | None = None

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Lets the other rows go."""
        self.index = self.index[mask]
        self.values = {name: value[mask] for name, value in self.values.items()}
        self.state = {name: value[mask] for name, value in self.state.items()}
        self.finished = None

    def charge(self, macs: NDArray[np.float64]) -> None:
        """Adds a step's cost to the living rows."""
        if len(self.index) == len(self.spent):
            self.spent += macs
        else:
            self.spent[self.index] += macs


class Engine:
    """A program with its graphs loaded. Safe to use from several threads."""

    def __init__(self, program: Sequence[Step], graphs: Mapping[str, Graph], *, n_labels: int) -> None:
        self.program = tuple(program)
        self.graphs = graphs
        self.n_labels = n_labels
        self._handlers = {
            "embed": self._compute,
            "layer": self._layer,
            "exit": self._exit,
            "head": self._head,
        }
        exits = [step.layer for step in self.program if step.kind == "exit"]
        self._positions = {layer: ExitPosition(layer, len(exits) - i - 1) for i, layer in enumerate(exits)}
        self._coefficients = {
            id(step): np.array([step.macs.row, step.macs.token, step.macs.token_pair], np.float64)
            for step in self.program
        }
        self._unread = self._values_no_longer_read()

    def run(self, inputs: Values, policy: Policy, *, compact: bool = True) -> Outcome:
        """Runs the program on a batch.

        Args:
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens].
            policy: Says who stops where.
            compact: Let finished rows leave at once. False keeps them until the last one is finished, which only
                serves to measure what compaction saves.
        """
        n = len(inputs["input_ids"])
        outcome = Outcome(
            scores=np.zeros((n, self.n_labels)),
            exit_layer=np.zeros(n, np.int64),
            layers_run=np.zeros(n, np.int64),
            macs=np.zeros(n),
        )
        rows = _Rows(index=np.arange(n), values=dict(inputs), state=policy.start(n), spent=np.zeros((n, 3)))
        for step, unread in zip(self.program, self._unread, strict=True):
            self._handlers[step.kind](step, rows, policy, outcome)
            for name in unread:
                rows.values.pop(name, None)  # an exit that is not read makes none
            if rows.finished is not None:
                if rows.finished.all():
                    break
                if compact:
                    rows.keep(~rows.finished)
        lengths = inputs["attention_mask"].sum(axis=1)
        outcome.macs = rows.spent[:, 0] + rows.spent[:, 1] * lengths + rows.spent[:, 2] * lengths**2
        return outcome

    def _compute(self, step: Step, rows: _Rows, policy: Policy, outcome: Outcome) -> None:
        """Runs the step's graph, if it has one of its own, on all living rows; its outputs become values."""
        if step.graph is not None:
            outcome.calls.append(Call(step.graph, len(rows.index), rows.values["attention_mask"].shape[1]))
            rows.values.update(self.graphs[step.graph].run(rows.values, step.outputs))
        rows.charge(self._coefficients[id(step)])

    def _layer(self, step: Step, rows: _Rows, policy: Policy, outcome: Outcome) -> None:
        self._compute(step, rows, policy, outcome)
        outcome.layers_run[rows.index] += 1

    def _exit(self, step: Step, rows: _Rows, policy: Policy, outcome: Outcome) -> None:
        """Lets the policy fold what the exit gave, and answers for the rows that stop."""
        position = self._positions[step.layer]
        reads = policy.reads(position)
        if reads or step.graph is None:
            self._compute(step, rows, policy, outcome)
        if reads:
            verdict = policy.fold(rows.state, rows.values, position)
            rows.state = verdict.state
            stops = verdict.finished if position.exits_left else np.ones(len(rows.index), np.bool_)
            _answer(stops, verdict.scores, step, rows, outcome)

    def _head(self, step: Step, rows: _Rows, policy: Policy, outcome: Outcome) -> None:
        """Answers for all rows left."""
        self._compute(step, rows, policy, outcome)
        _answer(np.ones(len(rows.index), np.bool_), rows.values["logits"], step, rows, outcome)

    def _values_no_longer_read(self) -> list[list[str]]:
        """For each step, the values that are there and that no later step reads; the mask always stays."""
        needed = {"attention_mask"}
        needed_after = []
        for step in reversed(self.program):
            needed_after.append(set(needed))
            needed.update(step.inputs)
        present = {"input_ids", "attention_mask", "token_type_ids"}
        unread = []
        for step, needed in zip(self.program, reversed(needed_after), strict=True):
            present.update(step.outputs)
            unread.append(sorted(present - needed))
            present &= needed
        return unread


def _answer(stops: NDArray[np.bool_], scores: NDArray[Any], step: Step, rows: _Rows, outcome: Outcome) -> None:
    """Writes down the answers of the rows that stop here and have none yet."""
    if rows.finished is not None:
        stops = stops & ~rows.finished
    if not stops.any():
        return
    places = rows.index[stops]
    outcome.scores[places] = scores[stops]
    outcome.exit_layer[places] = step.layer
    rows.finished = stops if rows.finished is None else rows.finished | stops
