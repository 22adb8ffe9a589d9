"""The three ways to choose operating points: by what may be lost, by a budget, and with a guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgebert.bundle.manifest import Guarantee
from edgebert.candidates import pareto_front
from edgebert.config import TuneConfig
from edgebert.tune.budgets import Budget, Timed, named_drops, within_drop
from edgebert.tune.guarantees import Procedure, Risk, check_independence, conformal_consistency, learn_then_test
from edgebert.tune.latency import Stopwatch, evenly
from edgebert.tune.trials import Trial, Trials, policies_to_try, try_policies


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        trial: The setting.
        budget: What it was asked to meet; empty when nothing.
        guarantee: What it promises.
        tests: The tests that its guarantee stands on, as plain data.
    """

    trial: Trial
    budget: str = ""
    guarantee: Guarantee | None = None
    tests: list[dict[str, Any]] = field(default_factory=list)


def choose_by_drop(trials: Trials, policies: Sequence[str] | None, config: TuneConfig) -> dict[str, Choice]:
    """Chooses `accurate`, `balanced` and `fast`: the cheapest settings that lose no more than they may."""
    try_policies(trials, policies_to_try(trials, policies))
    return {
        name: Choice(within_drop(trials.tried, trials.full, drop), f"max-drop={drop:g}")
        for name, drop in named_drops(config).items()
    }


def choose_by_budget(
    trials: Trials, policies: Sequence[str] | None, budget: Budget, config: TuneConfig, stopwatch: Stopwatch
) -> Choice:
    """Chooses the setting on the Pareto front of cost and metric that meets a budget best.

    Raises:
        QualityError: None meets it.
    """
    try_policies(trials, policies_to_try(trials, policies))
    front = pareto_front(trials.tried)
    if budget.needs_times:
        front = [front[place] for place in evenly(front, config.latency_points)]
        stopwatch.take([trials.full, *(trial for trial in front if trial is not trials.full)])
    full_ms = stopwatch.known_ms(trials.full)
    found = [Timed(trial, stopwatch.known_ms(trial), full_ms) for trial in front]
    return Choice(budget.choose(found, trials.model.task.METRIC).trial, budget.text)


def choose_with_guarantee(
    trials: Trials,
    policies: Sequence[str] | None,
    epsilon: float,
    delta: float | None,
    procedure: Procedure,
    risk: Risk | None,
) -> Choice:
    """Chooses the cheapest setting that the data show to be safe, or full depth, and says if it is that."""
    check_independence(trials)
    possible = policies_to_try(trials, policies)
    if procedure == "conformal":
        trial, promise, tests = conformal_consistency(trials, possible, epsilon)
    else:
        assert delta is not None
        if policies is None and trials.rule[0] in possible:
            possible = [trials.rule[0]]  # every further policy would cost the others some of delta
        bounded = risk or ("disagreement" if trials.targets is None else "metric_drop")
        trial, promise, tests = learn_then_test(trials, possible, bounded, epsilon, delta)
    if trial is trials.full:
        trials.reporter.say(
            f"no setting can be promised a {promise.risk} of at most {epsilon:g} from {promise.texts} texts: the point "
            "is full depth; give more texts or a larger EPS."
        )
    return Choice(trial, guarantee=promise, tests=tests)
