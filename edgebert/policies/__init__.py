"""When a row may stop and what its answer is: one rule per file, numpy only.

A rule folds what the exits give, one after the other, into a state per row; where a method plans instead, the rule says
which layers a row runs, all at once (`plan`) or one by one (`gate`); where it works inside layers, which pieces of one
run (`select`) and how many tokens go on (`keep`). The engine asks it about the rows that are still alive; `follow` asks
it about recorded decisions of all rows, which is how thresholds are chosen and tested.
A file defines `Config` (its knobs), `CHEAPER` (which way each knob saves work), `GRID` (settings worth trying, the
costliest first) and `Policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle.manifest import Macs
from edgebert.config import decode
from edgebert.errors import ConfigError

State = dict[str, NDArray[Any]]
"""What a rule remembers: arrays with rows on axis 0."""

Outputs = Mapping[str, NDArray[Any]]
"""What one step gave, by name: an exit's `probabilities` or `logits`, float [rows, labels], and what the rule reads."""

Wanted = NDArray[np.bool_]
"""Which layers each row runs, bool [rows, layers]."""

Chosen = NDArray[np.bool_]
"""Which pieces of a layer each row runs, bool [rows, pieces]."""


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
        scores: Makes each row's answer if it stops here, logits or log-probabilities, float [rows, labels]; asked for
            only where a row does.
    """

    state: State
    finished: NDArray[np.bool_]
    scores: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class GatePosition:
    """Where a gate stands: before which layer (from 1), and how many layers come after that one."""

    layer: int
    layers_left: int


@dataclass(frozen=True)
class Choice:
    """Optional pieces of a layer, such as its heads: how many there are, and what each costs a row that runs it."""

    name: str
    pieces: int
    each: Macs


@dataclass(frozen=True)
class SelectPosition:
    """Where pieces of a layer are chosen.

    Attributes:
        layer: The layer, counted from 1.
        choice: What is chosen from.
        all_choices: Everything that is chosen from in this layer, in order.
        predictors: What making these choices costs.
    """

    layer: int
    choice: Choice
    all_choices: tuple[Choice, ...]
    predictors: Macs


@dataclass(frozen=True)
class DropPosition:
    """Where tokens are dropped: in which layer (from 1) of how many."""

    layer: int
    layers: int


class Policy:
    """A rule with its knobs set. By itself it stops nobody, and every row runs everything on all of its tokens."""

    needs_probabilities = False
    """Whether exits must give probabilities, which a single value has not."""

    needs: frozenset[str] = frozenset()
    """What every exit, gate or plan must give by name, besides an exit's own answer."""

    needs_equal_plans = False
    """Whether only rows with the same plan may share a batch."""

    selects = False
    """Whether it chooses among the pieces of a layer; else all of them run, and no predictor is asked."""

    def start(self, rows: int) -> State:
        """Returns the state of rows that have seen no exit yet."""
        return {}

    def reads(self, position: ExitPosition) -> bool:
        """Says whether this exit has to be evaluated at all."""
        return True

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        """Takes one exit's outputs into account. At the last exit the caller stops every row."""
        return Verdict(state, np.zeros(rows_of(outputs), np.bool_), lambda: own_scores(outputs))

    def certainty(self, outputs: Outputs) -> NDArray[Any] | None:
        """Returns how sure an exit is, float [rows], where that alone says who stops; None where it does not."""
        return None

    def stop_above(self, certainty: float) -> Mapping[str, float]:
        """Returns the knobs that stop a row exactly where it is surer than this.

        Raises:
            ConfigError: The rule does not stop by how sure an exit is.
        """
        raise ConfigError(f"policy {type(self).__module__.rpartition('.')[2]}: does not stop by how sure an exit is.")

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        """Turns what a plan's graph gave into the layers each row runs, bool [rows, layers]."""
        return np.ones((rows_of(outputs), layers), np.bool_)

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

    def select(self, scores: NDArray[Any], position: SelectPosition, tokens: NDArray[np.int64]) -> Chosen:
        """Says which pieces of a layer run, bool [rows, pieces].

        Args:
            scores: How much each piece matters to each row, float [rows, pieces].
            position: What is chosen from, and where.
            tokens: How many tokens each row has there, int64 [rows].
        """
        return np.ones(scores.shape, np.bool_)

    def keep(self, position: DropPosition, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns how many tokens go on from here, at least 1, int64 [rows]; a row that has fewer keeps them all.

        Args:
            position: Where tokens are dropped.
            tokens: How many tokens each row began with, int64 [rows].
        """
        return tokens


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


def needed_values(name: str) -> frozenset[str]:
    """Returns what a rule needs every exit, gate or plan to give by name, besides an exit's own answer."""
    needs: frozenset[str] = registry.load("edgebert.policies", name).Policy.needs
    return needs


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


def rows_of(outputs: Outputs) -> int:
    """Returns how many rows a step's outputs have."""
    return len(next(iter(outputs.values())))
