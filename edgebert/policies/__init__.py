"""When a row may stop and what its answer is: one rule per file, numpy only.

A rule folds what the exits give, one after the other, into a state per row. The engine folds it over the rows that
are still alive; `replay` folds it over recorded exits of all rows, which is how thresholds are chosen and tested.
A file defines `Config` (its knobs), `CHEAPER` (which way each knob saves work), `GRID` (settings worth trying, the
costliest first) and `Policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.config import decode
from edgebert.errors import ConfigError

State = dict[str, NDArray[Any]]
"""What a rule remembers: arrays with rows on axis 0."""

Outputs = Mapping[str, NDArray[Any]]
"""What one exit gave, by name: `probabilities` or `logits`, float [rows, labels], and whatever the rule reads."""


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


class Policy(Protocol):
    """A rule with its knobs set."""

    def start(self, rows: int) -> State:
        """Returns the state of rows that have seen no exit yet."""

    def reads(self, position: ExitPosition) -> bool:
        """Says whether this exit has to be evaluated at all."""

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Takes one exit's outputs into account. At the last exit the caller stops every row."""


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
    """Returns the probabilities, float [rows, labels], of an exit that gives probabilities or logits."""
    if "probabilities" in outputs:
        return outputs["probabilities"]
    logits = np.asarray(outputs["logits"], np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return normalised


def safe_log(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the logarithm of probabilities, with 0 read as 1e-30."""
    logarithm: NDArray[np.float64] = np.log(np.maximum(np.asarray(probabilities, np.float64), 1.0e-30))
    return logarithm


def replay(
    policy: Policy, exits: Sequence[Outputs], exit_layers: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Folds a rule over the recorded exits of all rows.

    Args:
        policy: The rule.
        exits: For each exit, in order, the outputs of every row.
        exit_layers: The layer (from 1) of each exit.

    Returns:
        The scores each row stopped with, [rows, labels], and the layer it stopped after, int64 [rows].
    """
    rows = len(next(iter(exits[0].values())))
    state = policy.start(rows)
    exit_layer = np.zeros(rows, np.int64)
    scores: NDArray[Any] | None = None
    for index, (outputs, layer) in enumerate(zip(exits, exit_layers, strict=True)):
        position = ExitPosition(layer, len(exits) - index - 1)
        if not policy.reads(position):
            continue
        verdict = policy.fold(state, outputs, position)
        state = verdict.state
        stops = (exit_layer == 0) & (verdict.finished | (position.exits_left == 0))
        scores = np.zeros_like(verdict.scores) if scores is None else scores
        scores[stops] = verdict.scores[stops]
        exit_layer[stops] = layer
    if scores is None:
        raise ConfigError("the policy reads none of the model's exits.")
    return scores, exit_layer
