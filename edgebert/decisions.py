"""Recorded decisions, and what a rule makes of them.

This is how thresholds are chosen, and what the engine is tested against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Macs, total
from edgebert.errors import ConfigError
from edgebert.policies import (
    Choice,
    Chosen,
    DropPosition,
    ExitPosition,
    GatePosition,
    Outputs,
    Policy,
    SelectPosition,
    Wanted,
    rows_of,
)


@dataclass(frozen=True)
class Decision:
    """What one step that decides or answers gave, for all rows.

    Attributes:
        kind: `plan`, `gate`, `select`, `drop`, `exit` or `head`.
        layer: The layer it belongs to, counted from 1; 0 before the first.
        outputs: What it gave. A `drop` has `received`, float [rows, tokens], -inf where no token is.
        position: What a `select` chooses from.
        tokens: How many tokens each row has at a `select` and had at the start at a `drop`, int64 [rows].
    """

    kind: str
    layer: int
    outputs: Outputs
    position: SelectPosition | None = None
    tokens: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Followed:
    """What a rule made of recorded decisions.

    Attributes:
        scores: Each row's answer, logits or log-probabilities, float [rows, labels].
        exit_layer: The layer it was answered after, int64 [rows].
        path: Which layers it ran, bool [rows, layers].
        chosen: Which pieces of each layer it ran, by what they were chosen from, bool [rows, layers, pieces].
        token_layers: How many layers each of its tokens went through, int64 [rows, tokens]; None where none is dropped.
    """

    scores: NDArray[Any]
    exit_layer: NDArray[np.int64]
    path: Wanted
    chosen: dict[str, Chosen] = field(default_factory=dict)
    token_layers: NDArray[np.int64] | None = None


def follow(policy: Policy, decisions: Sequence[Decision], layers: int) -> Followed:
    """Follows a rule through recorded decisions of all rows.

    Args:
        policy: The rule.
        decisions: What each step gave that decides or answers, in the program's order. Where what runs depends on
            decisions before the layers, or inside them, they must have been recorded under this very rule.
        layers: How many layers the model has.

    Raises:
        ConfigError: The rule reads none of the model's exits.
    """
    trail = _Trail(
        policy, rows_of(decisions[0].outputs), layers, sum(decision.kind == "exit" for decision in decisions)
    )
    for number, decision in enumerate(decisions):
        trail.is_last = number == len(decisions) - 1
        getattr(trail, decision.kind)(decision)
    return trail.end()


class _Trail:
    """Where a rule has led all rows so far; one method for each kind of decision."""

    def __init__(self, policy: Policy, rows: int, layers: int, exits: int) -> None:
        self.policy, self.rows, self.layers, self.exits_left = policy, rows, layers, exits
        self.is_last = False
        self.state = policy.start(rows)
        self.path = np.ones((rows, layers), np.bool_)
        self.chosen: dict[str, Chosen] = {}
        self.token_layers: NDArray[np.int64] | None = None
        self.exit_layer = np.zeros(rows, np.int64)
        self.scores: NDArray[Any] | None = None

    def plan(self, decision: Decision) -> None:
        self.path = self.policy.settle(self.policy.plan(decision.outputs, self.layers))

    def gate(self, decision: Decision) -> None:
        layer = decision.layer
        executed = self.path[:, : layer - 1].sum(axis=1)
        position = GatePosition(layer, self.layers - layer)
        self.path[:, layer - 1] = self.policy.gate(decision.outputs, position, executed)

    def select(self, decision: Decision) -> None:
        name, pieces = choose(self.policy, decision)
        every_layer = self.chosen.setdefault(name, np.ones((self.rows, self.layers, pieces.shape[1]), np.bool_))
        every_layer[:, decision.layer - 1] = pieces

    def drop(self, decision: Decision) -> None:
        is_there = decision.outputs["received"] > -np.inf
        if self.token_layers is None:
            self.token_layers = np.where(is_there, self.layers, 0)
        self.token_layers[is_there & ~keep_tokens(self.policy, decision, self.layers)] = decision.layer - 1

    def head(self, decision: Decision) -> None:
        stops = ~self.path[:, decision.layer :].any(axis=1)
        self._answer(stops | self.is_last, decision.outputs["logits"], decision.layer)

    def exit(self, decision: Decision) -> None:
        self.exits_left -= 1
        position = ExitPosition(decision.layer, self.exits_left)
        if self.policy.reads(position):
            verdict = self.policy.fold(self.state, decision.outputs, position)
            self.state = verdict.state
            self._answer(verdict.finished | (self.exits_left == 0), verdict.scores(), decision.layer)

    def end(self) -> Followed:
        if self.scores is None:
            raise ConfigError("the policy reads none of the model's exits.")
        self.path &= np.arange(1, self.layers + 1) <= self.exit_layer[:, None]
        return Followed(self.scores, self.exit_layer, self.path, self.chosen, self.token_layers)

    def _answer(self, stops: NDArray[np.bool_], given: NDArray[Any], layer: int) -> None:
        stops = stops & (self.exit_layer == 0)
        self.scores = np.zeros_like(given) if self.scores is None else self.scores
        self.scores[stops] = given[stops]
        self.exit_layer[stops] = layer


class _StepFacts(Protocol):
    """What a step says of itself, in a bundle as in torch."""

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def macs(self) -> Macs: ...
    @property
    def choice(self) -> str | None: ...
    @property
    def choices(self) -> int: ...
    @property
    def each(self) -> Macs: ...
    @property
    def part(self) -> str: ...
    @property
    def is_linked(self) -> bool: ...


def paths_depend_on_rule(program: Sequence[_StepFacts]) -> bool:
    """Says whether a rule decides what is computed, and not only when to stop, so that later steps depend on it."""
    return any(
        step.kind in ("gate", "select", "drop") or (step.kind == "plan" and "hidden" in step.inputs) for step in program
    )


def spent_macs(
    program: Sequence[_StepFacts], policy: Policy, followed: Followed, lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns what the engine would spend on each row under a rule, in multiply-accumulates, float64 [rows].

    Args:
        program: A bundle's program, or a method's.
        policy: The rule.
        followed: What it made of the rows.
        lengths: Tokens of each row, int64 [rows].
    """
    exits = [step.layer for step in program if step.kind == "exit"]
    left = dict(zip(exits, reversed(range(len(exits))), strict=True))
    spent = np.zeros(len(lengths))
    for step in program:
        runs = followed.exit_layer >= step.layer
        if step.kind == "layer":
            spent += _layer_macs(step, followed, lengths)
            continue
        if step.kind == "head":
            runs = followed.exit_layer == step.layer
        elif step.kind == "exit" and not step.is_linked:
            runs = runs & np.bool_(policy.reads(ExitPosition(step.layer, left[step.layer])))
        elif step.kind == "select" and not policy.selects:
            continue  # the layer runs as one graph
        spent += runs * step.macs.of(lengths)
    return spent


def _layer_macs(step: _StepFacts, followed: Followed, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns what a layer, or a part of one, cost each row; nothing for the one graph that stands for the parts."""
    if step.part == "fused":
        return np.zeros(len(lengths))
    tokens = lengths
    # A token that is dropped inside a layer has taken part in its attention.
    through = step.layer - (step.part == "attention")
    if followed.token_layers is not None and through:
        tokens = (followed.token_layers >= through).sum(axis=1)
    macs = step.macs.of(tokens)
    if step.choice is not None:
        macs = macs + step.each.of(tokens) * followed.chosen[step.choice][:, step.layer - 1].sum(axis=1)
    ran: NDArray[np.float64] = followed.path[:, step.layer - 1] * macs
    return ran


def all_layers(program: Sequence[_StepFacts]) -> Macs:
    """Returns what all layers cost a row together, all of their pieces included."""
    layers = [step for step in program if step.kind == "layer" and step.part != "fused"]
    return total(macs for step in layers for macs in (step.macs, step.each.times(step.choices)))


def select_position(step: _StepFacts, program: Sequence[_StepFacts]) -> SelectPosition:
    """Returns where a select stands: what it chooses from, and what else its layer chooses from."""
    selects = [other for other in program if other.kind == "select" and other.layer == step.layer]
    costs = {other.choice: other.each for other in program if other.kind == "layer" and other.layer == step.layer}
    choices = {s.choice: Choice(s.choice, s.choices, costs[s.choice]) for s in selects if s.choice is not None}
    assert step.choice is not None
    return SelectPosition(step.layer, choices[step.choice], tuple(choices.values()), total(s.macs for s in selects))


def choose(policy: Policy, decision: Decision) -> tuple[str, Chosen]:
    """Returns what a recorded `select` chooses from, and which pieces each row runs, bool [rows, pieces]."""
    assert decision.position is not None
    assert decision.tokens is not None
    (scores,) = decision.outputs.values()
    if not policy.selects:
        return decision.position.choice.name, np.ones(scores.shape, np.bool_)
    return decision.position.choice.name, policy.select(scores, decision.position, decision.tokens)


def keep_tokens(policy: Policy, decision: Decision, layers: int) -> NDArray[np.bool_]:
    """Says which tokens go on from a recorded `drop`, bool [rows, tokens]."""
    assert decision.tokens is not None
    return most_received(
        decision.outputs["received"], policy.keep(DropPosition(decision.layer, layers), decision.tokens)
    )


def most_received(received: NDArray[Any], keep: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Says which tokens have received the most, bool [rows, tokens]; of equal ones the first.

    Args:
        received: Of each token, float [rows, tokens]; -inf where no token is, +inf for one that must stay.
        keep: How many to keep, int64 [rows]; a row that has fewer keeps them all.
    """
    order = np.argsort(-received, axis=1, kind="stable")
    kept = np.zeros(received.shape, np.bool_)
    np.put_along_axis(kept, order, np.arange(received.shape[1]) < np.maximum(keep, 1)[:, None], axis=1)
    return kept & (received > -np.inf)
