"""Tries settings on a bundle: most by following recorded decisions, the others by running the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Knobs
from edgebert.candidates import Candidate, check_answers, check_comparable, grid_of, series_of, subdivide
from edgebert.decisions import Decision, follow, paths_depend_on_rule, spent_macs
from edgebert.errors import ConfigError, suggestion
from edgebert.output import Reporter
from edgebert.policies import Policy, make_policy
from edgebert.runtime.model import EdgeModel
from edgebert.text import Encoded
from edgebert.tune.recording import record_decisions

_BATCH_SIZE = 32
_COST_STEP = 0.01
_ROUNDS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial(Candidate):
    """A setting that was tried; `predictions` are its answers, [texts]."""

    predictions: NDArray[Any]


class Trials:
    """Settings of one bundle tried on the same texts, each once.

    Attributes:
        full: Full depth, the policy `never`.
        batch_size: Most rows that run together: one where a row's answer depends on the others.
        recorded: What every exit, plan and head gave; None where what is computed depends on the rule.
        is_followed: Whether settings are tried by following what was recorded, which takes milliseconds.
    """

    def __init__(
        self, model: EdgeModel, encoded: Sequence[Encoded], targets: NDArray[Any] | None, reporter: Reporter
    ) -> None:
        """Records what all steps decide, where that is possible, and tries full depth.

        Args:
            model: The model; its policy is changed.
            encoded: The rows of the texts.
            targets: What it should answer, [texts]; None: not known, and every metric is nan.
            reporter: Where progress goes.
        """
        self.model, self.encoded, self.targets, self.reporter = model, encoded, targets, reporter
        self.manifest = model.manifest
        self.rule = self.manifest.rule.policy, self.manifest.rule.knobs
        self.lengths = np.array([len(row.ids) for row in encoded])
        if targets is not None:
            check_comparable(model.task, targets, f"{len(encoded)} texts to tune on")
        # Its activations have one scale for the batch, and at run time other rows share one than at full depth.
        quantization = self.manifest.quantization
        is_shared = quantization is not None and quantization.mode == "dynamic"
        self.batch_size = 1 if is_shared else _BATCH_SIZE
        self.recorded: list[Decision] | None = None
        if not paths_depend_on_rule(self.manifest.program):
            self.recorded = record_decisions(model, encoded, self.batch_size, reporter)
        self._tried: dict[str, Trial] = {}
        self.full = self.measure("never", {})

    @property
    def is_followed(self) -> bool:
        """Whether settings are tried by following what was recorded."""
        return self.recorded is not None

    @property
    def tried(self) -> list[Trial]:
        """Everything tried so far, in order."""
        return list(self._tried.values())

    def policy(self, name: str, knobs: Mapping[str, Any]) -> Policy:
        """Makes a policy of the bundle.

        Raises:
            ConfigError: The name or a knob is unknown, or a value makes no sense.
        """
        return make_policy(name, knobs, exit_layers=self.manifest.exit_layers, rule=self.rule)

    def measure(self, name: str, knobs: Knobs) -> Trial:
        """Tries a setting, unless that was done before."""
        key = f"{name} {sorted(knobs.items())}"
        if key not in self._tried:
            self._tried[key] = self._measure(name, knobs)
        return self._tried[key]

    def measure_all(self, settings: Sequence[tuple[str, Knobs]]) -> list[Trial]:
        """Tries several settings and shows how far it is."""
        found = []
        with self.reporter.track("settings", len(settings)) as advance:
            for name, knobs in settings:
                found.append(self.measure(name, knobs))
                advance(1, f"{name}, cost {found[-1].cost_ratio:.2f}")
        return found

    def refine(self, knob: str, settings: Sequence[Knobs], name: str) -> None:
        """Tries settings between neighbours whose costs lie far apart."""
        for _ in range(_ROUNDS):
            costs = [self.measure(name, knobs).cost_ratio for knobs in settings]
            finer: list[Knobs] = []
            for place, knobs in enumerate(settings):
                is_far = place + 1 < len(settings) and abs(costs[place] - costs[place + 1]) > _COST_STEP
                finer += subdivide(knob, [knobs, settings[place + 1]], 2)[:-1] if is_far else [knobs]
            if len(finer) == len(settings):
                return
            settings = finer

    def _measure(self, name: str, knobs: Knobs) -> Trial:
        policy = self.policy(name, knobs)
        if self.recorded is not None and not depends_on_batch(policy):
            followed = follow(policy, self.recorded, self.manifest.encoder.layers)
            scores, path = followed.scores, followed.path
            macs = spent_macs(self.manifest.program, policy, followed, self.lengths)
        else:
            self.model.set_policy(name, **knobs)
            outcome = self.model.run_encoded(self.encoded, batch_size=self.batch_size)
            scores, path, macs = outcome.scores, outcome.path, outcome.macs
        if name == "never":
            check_answers(scores)
        predictions = self.model.task.predictions(scores, self.encoded)
        return Trial(
            policy=name,
            knobs=knobs,
            metric=float("nan") if self.targets is None else self.model.task.metric(predictions, self.targets),
            mean_layers=float(path.sum(axis=1).mean()),
            cost_ratio=float(macs.sum() / self.model.full_macs(self.lengths).sum()),
            predictions=predictions,
        )


def depends_on_batch(policy: Policy) -> bool:
    """Says whether a row's plan depends on who shares its batch."""
    plans = np.array([[True, False], [True, True]])
    return bool((policy.settle(plans) != plans).any())


def known_settings(trials: Trials, name: str, *, of_training: bool = False) -> list[Knobs]:
    """Returns the knobs with which a policy is in the bundle already, the costliest first as far as that is known.

    With `of_training`, without those that were chosen for a budget or a guarantee.
    """
    points = [point for point in trials.manifest.operating_points.values() if point.policy == name]
    if of_training:
        points = [point for point in points if not point.budget and point.guarantee is None]
    points.sort(key=lambda point: 1.0 if point.cost_ratio is None else point.cost_ratio, reverse=True)
    return [point.knobs for point in points]


def distinct(settings: Sequence[Knobs]) -> list[Knobs]:
    """Returns settings without those that came before."""
    return list({str(sorted(knobs.items())): knobs for knobs in reversed(settings)}.values())[::-1]


def settings_of(trials: Trials, name: str) -> list[Knobs]:
    """Returns the settings of a policy to try: its grid, and those in the bundle already."""
    own = [trials.rule[1]] if name == trials.rule[0] else []
    return [*grid_of(name, trials.rule), *known_settings(trials, name), *own]


def try_policies(trials: Trials, policies: Sequence[str]) -> None:
    """Tries the settings of policies, and finer ones where that takes no run of the model."""
    trials.measure_all([(name, knobs) for name in policies for knobs in settings_of(trials, name)])
    if trials.is_followed:
        for name in policies:
            for knob, settings in series_of(name, trials.rule):
                trials.refine(knob, settings, name)


def policies_to_try(trials: Trials, names: Sequence[str] | None) -> list[str]:
    """Returns the policies that have settings to try: those named, or all of the method.

    Raises:
        ConfigError: The method has no such policy, or nothing can be chosen in it.
    """
    policies = trials.manifest.policies
    for name in names or ():
        if name not in policies:
            raise ConfigError(f"unknown policy {name!r} for this bundle.{suggestion(name, policies)}")
    found = [name for name in names or policies if name != "never" and settings_of(trials, name)]
    for name in names or found[:1] or ["the bundle's"]:
        if name not in found:
            raise ConfigError(f"policy {name}: it has no settings to choose from; name another, such as {policies[0]}.")
    return found
