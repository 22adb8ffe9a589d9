"""The conditional loop: interprets a bundle's program on a batch of rows. It knows kinds of steps, never methods.

A row is alive until a policy or a head gives its answer. Every value a step makes has rows on axis 0; when rows
leave, all values and the policy's state are gathered, so that finished rows cost nothing from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Step
from edgebert.policies import ExitPosition, Policy, State
from edgebert.runtime.sessions import Graph
from edgebert.text import Values


class Call(NamedTuple):
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


class _Spent(NamedTuple):
    """What a living row has been through: layers, and multiply-accumulates per row, token and pair of tokens."""

    layers: int = 0
    row: int = 0
    token: int = 0
    token_pair: int = 0


class _Answer(NamedTuple):
    """The rows that stopped together: their places, scores, the layer they stopped after, and what they spent."""

    places: NDArray[np.int64]
    scores: NDArray[Any]
    layer: int
    spent: _Spent


@dataclass
class _Rows:
    """The rows still alive: their places in the batch, their values, and what the policy remembers.

    `finished` says which of them have their answer; None while none has.
    """

    places: NDArray[np.int64]
    values: Values
    state: State
    policy: Policy
    spent: _Spent = field(default_factory=_Spent)
    finished: NDArray[np.bool_] | None = None
    answers: list[_Answer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Lets the other rows go."""
        self.places = self.places[mask]
        self.values = {name: value[mask] for name, value in self.values.items()}
        self.state = {name: value[mask] for name, value in self.state.items()}
        self.finished = None

    def answer(self, stops: NDArray[np.bool_] | None, scores: NDArray[Any], layer: int) -> None:
        """Writes down the answers of the rows that stop here and have none yet; None means all rows stop."""
        if stops is None:
            stops = np.ones(len(self.places), np.bool_)
        if self.finished is not None:
            stops = stops & ~self.finished
        if stops.any():
            self.answers.append(_Answer(self.places[stops], scores[stops], layer, self.spent))
            self.finished = stops if self.finished is None else self.finished | stops


class _Ready(NamedTuple):
    """A step with everything looked up: its graph, its handler, and the values nobody reads after it."""

    step: Step
    graph: Graph | None
    handle: Callable[[_Ready, _Rows], None]
    position: ExitPosition | None
    unread: tuple[str, ...]


class Engine:
    """A program with its graphs loaded. Safe to use from several threads."""

    def __init__(self, program: Sequence[Step], graphs: Mapping[str, Graph]) -> None:
        self.program = tuple(program)
        self.graphs = graphs
        exits = [step.layer for step in self.program if step.kind == "exit"]
        positions = {layer: ExitPosition(layer, len(exits) - i - 1) for i, layer in enumerate(exits)}
        self._steps = [
            _Ready(
                step,
                None if step.graph is None else graphs[step.graph],
                _HANDLERS[step.kind],
                positions[step.layer] if step.kind == "exit" else None,
                unread,
            )
            for step, unread in zip(self.program, _no_longer_read(self.program), strict=True)
        ]

    def run(self, inputs: Values, policy: Policy, *, compact: bool = True) -> Outcome:
        """Runs the program on a batch.

        Args:
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens].
            policy: Says who stops where.
            compact: Let finished rows leave at once. False keeps them until the last one is finished, which only
                serves to measure what compaction saves.
        """
        n = len(inputs["input_ids"])
        rows = _Rows(places=np.arange(n), values=dict(inputs), state=policy.start(n), policy=policy)
        for ready in self._steps:
            ready.handle(ready, rows)
            for name in ready.unread:
                rows.values.pop(name, None)  # an exit that is not read makes none
            if rows.finished is not None:
                if rows.finished.all():
                    break
                if compact:
                    rows.keep(~rows.finished)
        if not compact:  # finished rows went along to the end
            rows.answers = [answer._replace(spent=rows.spent) for answer in rows.answers]
        return _outcome(rows, inputs["attention_mask"].sum(axis=1))


def _compute(ready: _Ready, rows: _Rows) -> None:
    """Runs the step's graph, if it has one of its own, on all living rows; its outputs become values."""
    step, spent = ready.step, rows.spent
    if ready.graph is not None:
        assert step.graph is not None
        rows.calls.append(Call(step.graph, *rows.values["attention_mask"].shape))
        rows.values.update(ready.graph.run(rows.values, step.outputs))
    macs = step.macs
    rows.spent = _Spent(
        spent.layers + (step.kind == "layer"),
        spent.row + macs.row,
        spent.token + macs.token,
        spent.token_pair + macs.token_pair,
    )


def _exit(ready: _Ready, rows: _Rows) -> None:
    """Lets the policy fold what the exit gave, and answers for the rows that stop."""
    position = ready.position
    assert position is not None
    reads = rows.policy.reads(position)
    if reads or ready.graph is None:
        _compute(ready, rows)
    if reads:
        verdict = rows.policy.fold(rows.state, rows.values, position)
        rows.state = verdict.state
        rows.answer(verdict.finished if position.exits_left else None, verdict.scores, position.layer)


def _head(ready: _Ready, rows: _Rows) -> None:
    """Answers for all rows left."""
    _compute(ready, rows)
    rows.answer(None, rows.values["logits"], ready.step.layer)


_HANDLERS: dict[str, Callable[[_Ready, _Rows], None]] = {
    "embed": _compute,
    "layer": _compute,
    "exit": _exit,
    "head": _head,
}


def _outcome(rows: _Rows, lengths: NDArray[np.int64]) -> Outcome:
    """Puts the answers in the batch's order."""
    n = len(lengths)
    outcome = Outcome(
        scores=np.empty((n, *rows.answers[0].scores.shape[1:])),
        exit_layer=np.empty(n, np.int64),
        layers_run=np.empty(n, np.int64),
        macs=np.empty(n),
        calls=rows.calls,
    )
    for places, scores, layer, spent in rows.answers:
        outcome.scores[places] = scores
        outcome.exit_layer[places] = layer
        outcome.layers_run[places] = spent.layers
        length = lengths[places]
        outcome.macs[places] = spent.row + spent.token * length + spent.token_pair * length**2
    return outcome


def _no_longer_read(program: Sequence[Step]) -> list[tuple[str, ...]]:
    """For each step, the values that are there and that no later step reads; the mask always stays."""
    needed = {"attention_mask"}
    needed_after = []
    for step in reversed(program):
        needed_after.append(set(needed))
        needed.update(step.inputs)
    present = {"input_ids", "attention_mask", "token_type_ids"}
    unread = []
    for step, needed in zip(program, reversed(needed_after), strict=True):
        present.update(step.outputs)
        unread.append(tuple(sorted(present - needed)))
        present &= needed
    return unread
