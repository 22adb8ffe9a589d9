"""When a row may stop and what its answer is: one rule per file, numpy only.

A rule folds what the exits give, one after the other, into a state per row; where a method plans instead, the rule says
which layers a row runs, all at once (`plan`) or one by one (`gate`). The engine asks it about the rows that are still
alive; `follow` asks it about recorded decisions of all rows, which is how thresholds are chosen and tested.
A file defines `Config` (its knobs), `CHEAPER` (which way each knob saves work), `GRID` (settings worth trying, the
costliest first) and `Policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.config import decode
from edgebert.errors import ConfigError

State = dict[str, NDArray[Any]]
"""What a rule remembers: arrays with rows on axis 0."""

Outputs = Mapping[str, NDArray[Any]]
"""What one step gave, by name: an exit's `probabilities` or `logits`, float [rows, labels], and what the rule reads."""

Wanted = NDArray[np.bool_]
"""Which layers each row runs, bool [rows, layers]."""


@dataclass(frozen=True)
class ExitPosition:
    """Where an exit stands: after which layer (from 1), and how many exits come after it."""

    layer: int
    exits_left: int


@dataclass(frozen=True)
class Verdict:
    """What a rule says after one exit.

    Attributes:
        state: The state to carry on, rows on axis 0.
        finished: Which rows stop here, bool [rows].
        scores: Each row's answer if it stops here, logits or log-probabilities, float [rows, labels].
    """

    state: State
    finished: NDArray[np.bool_]
    scores: NDArray[Any]


@dataclass(frozen=True)
class GatePosition:
    """Where a gate stands: before which layer (from 1), and how many layers come after that one."""

    layer: int
    layers_left: int


class Policy:
    """A rule with its knobs set. By itself it stops nobody and lets every row run every layer."""

    needs_equal_plans = False
    """Whether only rows with the same plan may share a batch."""

    def start(self, rows: int) -> State:
        """Returns the state of rows that have seen no exit yet."""
        return {}

    def reads(self, position: ExitPosition) -> bool:
        """Says whether this exit has to be evaluated at all."""
        return True

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Takes one exit's outputs into account. At the last exit the caller stops every row."""
        scores = own_scores(outputs)
        return Verdict(state, np.zeros(len(scores), np.bool_), scores)

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Turns what a plan's graph gave into the layers each row runs, bool [rows, layers]."""
        return np.ones((_rows(outputs), layers), np.bool_)

    def settle(self, wanted: Wanted) -> Wanted:
        """Returns the plans of the rows of one batch, once it is known who shares it, bool [rows, layers]."""
        return wanted

    def gate(self, outputs: Outputs, position: GatePosition, executed: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Says which rows run the layer after a gate, bool [rows].

        Args:
            outputs: What the gate's graph gave.
            position: Where the gate stands.
            executed: How many layers each row has run so far, int64 [rows].
        """
        return np.ones(len(executed), np.bool_)


def make_policy(
    name: str,
    knobs: Mapping[str, Any],
    *,
    exit_layers: Sequence[int],
    rule: tuple[str, Mapping[str, Any]] | None = None,
) -> Policy:
    """Makes a rule with its knobs.

    Args:
        name: A file in `edgebert/policies`.
        knobs: Its knobs by name; those left out take their defaults.
        exit_layers: The layers (from 1) after which the model has an exit.
        rule: Name and knobs of the method's own rule, whose full-depth answer `never` gives.

    Raises:
        ConfigError: The name or a knob is unknown, or a value makes no sense.
    """
    module = registry.load("edgebert.policies", name)
    config = decode(dict(knobs), module.Config, where=f"policy {name}")
    own = make_policy(*rule, exit_layers=exit_layers) if rule and name == "never" and rule[0] != "never" else None
    policy: Policy = module.Policy(config, tuple(exit_layers), own)
    return policy


def knob_names(name: str) -> list[str]:
    """Returns the knobs of a rule."""
    config = registry.load("edgebert.policies", name).Config
    return [field.name for field in msgspec.structs.fields(config)]


def log_probabilities(outputs: Outputs) -> NDArray[np.float64]:
    """Returns log-probabilities, float64 [rows, labels], of an exit that gives probabilities or logits."""
    if "probabilities" in outputs:
        return safe_log(outputs["probabilities"])
    logits = np.asarray(outputs["logits"], np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def probabilities(outputs: Outputs) -> NDArray[Any]:
    """Returns the probabilities, float [rows, labels], of an exit that gives probabilities or logits.

    Raises:
        ConfigError: The exit gives a single value, as in regression.
    """
    if "probabilities" in outputs:
        return outputs["probabilities"]
    logits = np.asarray(outputs["logits"], np.float64)
    if logits.shape[-1] == 1:
        raise ConfigError("the policy needs probabilities, and a single value has none; use patience, fixed or never.")
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return normalised


def own_scores(outputs: Outputs) -> NDArray[Any]:
    """Returns an exit's own answer: log-probabilities, float64 [rows, labels], or its single values, [rows, 1]."""
    if "logits" in outputs and outputs["logits"].shape[-1] == 1:
        return np.asarray(outputs["logits"], np.float64)
    return log_probabilities(outputs)


def safe_log(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the logarithm of probabilities, with 0 read as 1e-30."""
    logarithm: NDArray[np.float64] = np.log(np.maximum(np.asarray(probabilities, np.float64), 1.0e-30))
    return logarithm


@dataclass(frozen=True)
class Decision:
    """What one step that decides or answers gave, for all rows.

    Attributes:
        kind: `plan`, `gate`, `exit` or `head`.
        layer: The layer it belongs to, counted from 1; 0 before the first.
        outputs: What it gave.
    """

    kind: str
    layer: int
    outputs: Outputs


@dataclass(frozen=True)
class Followed:
    """What a rule made of recorded decisions.

    Attributes:
        scores: Each row's answer, logits or log-probabilities, float [rows, labels].
        exit_layer: The layer it was answered after, int64 [rows].
        path: Which layers it ran, bool [rows, layers].
    """

    scores: NDArray[Any]
    exit_layer: NDArray[np.int64]
    path: Wanted


def follow(policy: Policy, decisions: Sequence[Decision], layers: int) -> Followed:
    """Follows a rule through recorded decisions of all rows.

    Args:
        policy: The rule.
        decisions: What each step gave that decides or answers, in the program's order. Where what runs depends on
            gates, or on a plan that leaves layers out, they must have been recorded under this very rule.
        layers: How many layers the model has.

    Raises:
        ConfigError: The rule reads none of the model's exits.
    """
    rows = _rows(decisions[0].outputs)
    exits_left = sum(decision.kind == "exit" for decision in decisions)
    state = policy.start(rows)
    path = np.ones((rows, layers), np.bool_)
    exit_layer = np.zeros(rows, np.int64)
    scores: NDArray[Any] | None = None
    for number, (kind, layer, outputs) in enumerate((d.kind, d.layer, d.outputs) for d in decisions):
        stops, given = np.zeros(rows, np.bool_), None
        if kind == "plan":
            path = policy.settle(policy.plan(outputs, layers))
        elif kind == "gate":
            executed = path[:, : layer - 1].sum(axis=1)
            path[:, layer - 1] = policy.gate(outputs, GatePosition(layer, layers - layer), executed)
        elif kind == "head":
            is_last = number == len(decisions) - 1
            stops, given = is_last | ~path[:, layer:].any(axis=1), outputs["logits"]
        elif kind == "exit":
            exits_left -= 1
            position = ExitPosition(layer, exits_left)
            if policy.reads(position):
                verdict = policy.fold(state, outputs, position)
                state, given = verdict.state, verdict.scores
                stops = verdict.finished | (exits_left == 0)
        if given is not None:
            stops = stops & (exit_layer == 0)
            scores = np.zeros_like(given) if scores is None else scores
            scores[stops] = given[stops]
            exit_layer[stops] = layer
    if scores is None:
        raise ConfigError("the policy reads none of the model's exits.")
    path &= np.arange(1, layers + 1) <= exit_layer[:, None]
    return Followed(scores, exit_layer, path)


def replay(
    policy: Policy, exits: Sequence[Outputs], exit_layers: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Follows a rule through the recorded exits of all rows.

    Args:
        policy: The rule.
        exits: For each exit, in order, the outputs of every row.
        exit_layers: The layer (from 1) of each exit.

    Returns:
        The scores each row stopped with, [rows, labels], and the layer it stopped after, int64 [rows].
    """
    decisions = [Decision("exit", layer, outputs) for outputs, layer in zip(exits, exit_layers, strict=True)]
    followed = follow(policy, decisions, max(exit_layers))
    return followed.scores, followed.exit_layer


def _rows(outputs: Outputs) -> int:
    return len(next(iter(outputs.values())))
