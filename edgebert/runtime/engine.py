"""The conditional loop: interprets a bundle's program on a batch of rows. It knows kinds of steps, never methods.

A row is alive until a policy or a head gives its answer. Every value a step makes has rows on axis 0; when rows
leave, all values and the policy's state are gathered, so that finished rows cost nothing from then on. A row that
does not want a layer does not enter it, and a layer nobody wants is not called. Tokens that are dropped are gone until
they are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Macs, Step, total
from edgebert.decisions import select_position
from edgebert.policies import DropPosition, ExitPosition, GatePosition, Policy, SelectPosition, State
from edgebert.runtime import tokens
from edgebert.runtime.graphs import Graph
from edgebert.runtime.outcome import Call, Mask, Outcome
from edgebert.text import Values

IDS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""The values a batch starts with."""

ROWS_WORTH_A_GROUP = 8
"""A batch is split by path when the paths have this many rows on average: many small groups were measured 1.4 to 1.75
times slower than one batch whose layers run on the rows that want them, and few large ones up to 8 % faster."""


@dataclass
class _Rows:
    """The rows still alive: their places in the batch, their values, and what the policy remembers.

    Attributes:
        places: Where each row stands in the batch, int64 [alive].
        values: Arrays by name, rows on axis 0.
        state: What the policy remembers.
        policy: Says who stops where and who runs what.
        outcome: Where the answers go.
        lengths: Tokens each row of the batch has left, int64 [rows].
        started: Tokens each row of the batch began with, int64 [rows].
        is_fused: Whether the layer at hand runs as one graph, in place of its parts.
        wanted: Which layers each row of the batch is to run, bool [rows, layers]; None while nothing was said.
        finished: Which living rows have their answer; None while none has.
        owed: The steps that ran on all living rows and are not written down yet, with what they cost. Writing down
            after every step was measured a tenth of a short text's time.
    """

    places: NDArray[np.int64]
    values: Values
    state: State
    policy: Policy
    outcome: Outcome
    lengths: NDArray[np.int64]
    started: NDArray[np.int64]
    is_fused: bool = False
    wanted: Mask | None = None
    finished: Mask | None = None
    owed: list[tuple[Step, Macs]] = field(default_factory=list)

    def keep(self, mask: Mask) -> None:
        """Lets the other rows go."""
        self.settle()
        self.places = self.places[mask]
        self.values = {name: value[mask] for name, value in self.values.items()}
        self.state = {name: value[mask] for name, value in self.state.items()}
        self.finished = None

    def part(self, mask: Mask) -> _Rows:
        """Returns some of the rows, to be run apart from the others."""
        self.settle()
        part = replace(self, finished=None, owed=[])
        part.keep(mask)
        return part

    def run(self, ready: _Ready, chosen: Mask | None) -> Values:
        """Runs a step's graph, if it has one of its own, on the chosen rows; None means all of them.

        Returns:
            What the graph gave; nothing for a step that was linked into the graph before it.
        """
        step = ready.step
        ran = (step, self._cost(step, step.choice, chosen) if step.choice else step.macs)
        if chosen is None:
            self.owed.append(ran)
        else:
            self.settle()
            self._write_down(self.places[chosen], [ran])
        if ready.graph is None:
            return {}
        inputs = self.values if chosen is None else {name: self.values[name][chosen] for name in step.inputs}
        return ready.graph.run(inputs, step.outputs)

    def _cost(self, step: Step, choice: str, chosen: Mask | None) -> Macs:
        """Returns what a step costs each of the rows it runs on, its optional pieces too if all run as many of them.

        If not, each row is charged its own pieces at once.
        """
        if step.kind != "layer":  # it makes the choice
            return step.macs
        places, every = self.places, self.values[choice]
        if chosen is not None:
            places, every = places[chosen], every[chosen]
        pieces = every.sum(axis=1)
        if (pieces == pieces[0]).all():
            return total((step.macs, step.each.times(int(pieces[0]))))
        self._charge(places, step.each, pieces)
        return step.macs

    def executed(self) -> NDArray[np.int64]:
        """Returns how many layers each living row has run, int64 [alive]."""
        path = self.outcome.path[self.places]
        path[:, _layers(self.owed)] = True
        executed: NDArray[np.int64] = path.sum(axis=1)
        return executed

    def settle(self) -> None:
        """Writes down what the living rows have run since the last time; before any leaves or gets shorter."""
        if self.owed:
            self._write_down(self.places, self.owed)
            self.owed = []

    def _write_down(self, places: NDArray[np.int64], ran: Sequence[tuple[Step, Macs]]) -> None:
        """Notes what steps cost rows, which layers these have run, and the session calls."""
        tokens = self.values["attention_mask"].shape[1]
        self._charge(places, total(macs for _, macs in ran))
        self.outcome.path[places[:, None], _layers(ran)] = True
        self.outcome.calls.extend(Call(graph, len(places), tokens) for step, _ in ran if (graph := step.graph))

    def _charge(self, places: NDArray[np.int64], macs: Macs, times: NDArray[np.int64] | int = 1) -> None:
        outcome = self.outcome
        at = slice(None) if len(places) == len(self.lengths) else places  # all of the batch, and so in its order
        length = self.lengths[at]
        linear = times * (macs.row + macs.token * length)
        outcome.linear_macs[at] += linear
        outcome.macs[at] += linear + times * macs.token_pair * length * length

    def answer(self, stops: Mask | None, scores: Callable[[], NDArray[Any]], layer: int) -> None:
        """Writes down the answers of the rows that stop here and have none yet; None means all rows stop."""
        if stops is None:
            stops = np.ones(len(self.places), np.bool_)
        if self.finished is not None:
            stops = stops & ~self.finished
        if stops.any():
            self.outcome.answer(self.places[stops], scores()[stops], layer)
            self.finished = stops if self.finished is None else self.finished | stops


def _layers(ran: Sequence[tuple[Step, Macs]]) -> list[int]:
    """Returns the layers among some steps, counted from 0."""
    return [step.layer - 1 for step, _ in ran if step.kind == "layer"]


class _Ready(NamedTuple):
    """A step with everything looked up.

    `position` is an exit's, `selection` a select's; `layers_after` says how many layers come after its own; `unread`
    names the values nobody reads after it; `in_pieces` says whether its layer has pieces to choose from.
    """

    step: Step
    graph: Graph | None
    handle: Callable[[_Ready, _Rows], None]
    position: ExitPosition | None
    selection: SelectPosition | None
    layers_after: int
    unread: tuple[str, ...]
    in_pieces: bool


class Engine:
    """A program with its graphs loaded. Safe to use from several threads."""

    def __init__(self, program: Sequence[Step], graphs: Mapping[str, Graph]) -> None:
        self.program = tuple(program)
        self.graphs = graphs
        self.layers = max(step.layer for step in self.program)
        exits = [step.layer for step in self.program if step.kind == "exit"]
        positions = {layer: ExitPosition(layer, len(exits) - i - 1) for i, layer in enumerate(exits)}
        self._steps = [
            _Ready(
                step,
                None if step.graph is None else graphs[step.graph],
                _HANDLERS[step.kind],
                positions[step.layer] if step.kind == "exit" else None,
                select_position(step, self.program) if step.kind == "select" else None,
                len({later.layer for later in self.program[number + 1 :] if later.kind == "layer"} - {step.layer}),
                unread,
                any(other.kind == "select" and other.layer == step.layer for other in self.program),
            )
            for number, (step, unread) in enumerate(zip(self.program, _no_longer_read(self.program), strict=True))
        ]
        self._ahead = next((ready for ready in self._steps if reads_ids_only(ready.step)), None)

    @property
    def plans_ahead(self) -> bool:
        """Whether the program has a plan that needs only token ids, and so can be made before batching."""
        return self._ahead is not None

    def plan(self, inputs: Values, policy: Policy, outcome: Outcome, places: NDArray[np.int64]) -> Mask:
        """Makes the plan of some rows from their token ids alone.

        Args:
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens].
            policy: Turns what the graph gives into layers.
            outcome: Where the session call and its cost are noted.
            places: Where the rows stand in that outcome.

        Returns:
            The layers each row is to run, bool [rows, layers].
        """
        assert self._ahead is not None
        rows = self._start(inputs, policy)
        wanted = policy.plan(rows.run(self._ahead, None), self.layers)
        rows.settle()
        outcome.macs[places] += rows.outcome.macs
        outcome.linear_macs[places] += rows.outcome.linear_macs
        outcome.calls.extend(rows.outcome.calls)
        return wanted

    def run(self, inputs: Values, policy: Policy, *, compact: bool = True, plan: Mask | None = None) -> Outcome:
        """Runs the program on a batch.

        Args:
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens].
            policy: Says who stops where and who runs what.
            compact: Let finished rows leave at once. False keeps them until the last one is finished, which only
                serves to measure what compaction saves.
            plan: The layers each row is to run, when that was decided before, bool [rows, layers].
        """
        rows = self._start(inputs, policy)
        if plan is not None:
            rows.wanted = policy.settle(plan)
        self._run(rows, 0, compact)
        return rows.outcome

    def _start(self, inputs: Values, policy: Policy) -> _Rows:
        n = len(inputs["input_ids"])
        lengths = inputs["attention_mask"].sum(axis=1)
        outcome = Outcome.empty(n, self.layers)
        return _Rows(np.arange(n), dict(inputs), policy.start(n), policy, outcome, lengths, lengths.copy())

    def _run(self, rows: _Rows, first: int, compact: bool) -> None:
        """Runs the steps from a given one on."""
        for number in range(first, len(self._steps)):
            ready = self._steps[number]
            ready.handle(ready, rows)
            for name in ready.unread:
                rows.values.pop(name, None)  # an exit that is not read makes none
            groups = _same_paths(rows) if ready.step.kind == "plan" and not reads_ids_only(ready.step) else []
            if 1 < len(groups) <= len(rows.places) / ROWS_WORTH_A_GROUP:
                for group in groups:
                    self._run(rows.part(group), number + 1, compact)
                return
            if rows.finished is not None:
                if rows.finished.all():
                    rows.settle()
                    return
                if compact:
                    rows.keep(~rows.finished)
        rows.settle()


def reads_ids_only(step: Step) -> bool:
    """Says whether a step is a plan that needs nothing but token ids."""
    return step.kind == "plan" and set(step.inputs) <= IDS


def _compute(ready: _Ready, rows: _Rows) -> None:
    """Runs the step on all living rows; what it makes become values."""
    rows.values.update(rows.run(ready, None))


def _layer(ready: _Ready, rows: _Rows) -> None:
    """Runs a layer on the rows that want it; the values of the others stay as they are.

    A layer that is there in parts and as one graph runs as the latter when all pieces of it are to run, or no row
    drops a token in it.
    """
    if ready.step.part == "fused":
        if ready.in_pieces:
            rows.is_fused = not rows.policy.selects
        else:
            rows.is_fused = not _drops_any(_tokens_to_keep(ready, rows), rows)
        if rows.is_fused:
            _compute(ready, rows)
        return
    if rows.is_fused and ready.step.part != "whole":
        return
    wanted = None if rows.wanted is None else rows.wanted[rows.places, ready.step.layer - 1]
    if wanted is None or wanted.all():
        _compute(ready, rows)
    elif wanted.any():
        for name, made in rows.run(ready, wanted).items():
            rows.values[name][wanted] = made


def _select(ready: _Ready, rows: _Rows) -> None:
    """Decides which pieces of a layer run on each row."""
    step = ready.step
    assert ready.selection is not None
    assert step.choice is not None
    if rows.policy.selects:
        made = rows.run(ready, None) or {name: rows.values[name] for name in step.inputs}  # linked: computed already
        (scores,) = made.values()
        pieces = rows.policy.select(scores, ready.selection, rows.lengths[rows.places])
    else:
        pieces = np.ones((len(rows.places), step.choices), np.bool_)
    rows.values[step.choice] = pieces
    rows.outcome.choose(step.choice, rows.places, step.layer, pieces)


def _drop(ready: _Ready, rows: _Rows) -> None:
    """Lets each row go on with the tokens that received the most attention."""
    keep = _tokens_to_keep(ready, rows)
    if _drops_any(keep, rows):
        assert rows.outcome.token_layers is not None
        rows.settle()
        row, place = tokens.drop(rows.values, keep)
        rows.outcome.token_layers[rows.places[row], place] = ready.step.layer - 1
        rows.lengths[rows.places] = keep


def _tokens_to_keep(ready: _Ready, rows: _Rows) -> NDArray[np.int64]:
    """Returns how many tokens of each living row go on from a layer, int64 [alive]."""
    layers = rows.outcome.path.shape[1]
    if rows.outcome.token_layers is None:
        rows.outcome.token_layers = np.where(rows.values["attention_mask"] != 0, layers, 0)
    keep = rows.policy.keep(DropPosition(ready.step.layer, layers), rows.started[rows.places])
    return np.clip(keep, 1, rows.lengths[rows.places])


def _drops_any(keep: NDArray[np.int64], rows: _Rows) -> bool:
    return bool((keep < rows.lengths[rows.places]).any())


def _restore(ready: _Ready, rows: _Rows) -> None:
    """Puts every token that was dropped back in its place, as it was when it was dropped."""
    rows.settle()
    tokens.restore(rows.values)


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
    """Answers for the rows that want no layer after this one; after the last layer for all."""
    ends = None
    if ready.layers_after and rows.wanted is not None:
        ends = ~rows.wanted[rows.places, ready.step.layer :].any(axis=1)
        if rows.finished is not None:
            ends &= ~rows.finished
    elif ready.layers_after:
        return
    if ends is not None and not ends.any():
        return
    chosen = None if ends is None or ends.all() else ends
    made = rows.run(ready, chosen).get("logits", rows.values.get("logits"))  # a linked head has been computed already
    assert made is not None
    scores = made
    if chosen is not None:
        scores = np.zeros((len(chosen), *made.shape[1:]), made.dtype)
        scores[chosen] = made
    rows.answer(chosen, lambda: scores, ready.step.layer)


def _plan(ready: _Ready, rows: _Rows) -> None:
    """Decides, before the first layer, which layers each row is to run, unless that was done before batching."""
    if rows.wanted is None:
        outputs = rows.run(ready, None) or rows.values  # a linked plan has been computed already
        rows.wanted = rows.policy.settle(rows.policy.plan(outputs, rows.outcome.path.shape[1]))


def _gate(ready: _Ready, rows: _Rows) -> None:
    """Decides which rows run the next layer."""
    layer = ready.step.layer
    position = GatePosition(layer, ready.layers_after)
    executed = rows.executed()
    if rows.wanted is None:
        rows.wanted = np.ones_like(rows.outcome.path)
    outputs = rows.run(ready, None) or rows.values  # a linked gate has been computed already
    rows.wanted[rows.places, layer - 1] = rows.policy.gate(outputs, position, executed)


_HANDLERS: dict[str, Callable[[_Ready, _Rows], None]] = {
    "embed": _compute,
    "plan": _plan,
    "gate": _gate,
    "select": _select,
    "layer": _layer,
    "drop": _drop,
    "restore": _restore,
    "exit": _exit,
    "head": _head,
}


def _same_paths(rows: _Rows) -> list[Mask]:
    """Returns, for each path that any living row takes, which living rows take it."""
    assert rows.wanted is not None
    paths, group = np.unique(rows.wanted[rows.places], axis=0, return_inverse=True)
    return [group.reshape(-1) == number for number in range(len(paths))]


def _no_longer_read(program: Sequence[Step]) -> list[tuple[str, ...]]:
    """For each step, the values that are there and that no later step reads; the mask always stays."""
    needed = {"attention_mask", *tokens.KEPT}
    needed_after = []
    for step in reversed(program):
        needed_after.append(set(needed))
        needed.update(step.inputs, [step.choice] if step.choice else [])
    present = set(IDS)
    unread = []
    for step, needed in zip(program, reversed(needed_after), strict=True):
        present.update(step.outputs, [step.choice] if step.choice else [])
        unread.append(tuple(sorted(present - needed)))
        present &= needed
    return unread
