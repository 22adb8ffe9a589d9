"""Chooses settings of a bundle whose risk is bounded with a finite-sample guarantee.

Every order of settings is that of the policies' grids, from the costliest on, and known before the texts are seen;
finer steps are spaced evenly between the grid's. Several orders (several policies, or one whose grid varies a second
knob) share `delta` evenly, so that the cheapest of everything accepted may be taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Guarantee, Knobs
from edgebert.candidates import series_of, subdivide
from edgebert.errors import ConfigError
from edgebert.policies import own_scores
from edgebert.tasks import Task
from edgebert.tune.risk_control import fixed_sequence, hoeffding_bentkus, shared_threshold
from edgebert.tune.trials import Trial, Trials, depends_on_batch, distinct, known_settings

Procedure = Literal["learn_then_test", "conformal"]
Risk = Literal["metric_drop", "disagreement"]

_PARTS = 4


def check_guarantee(epsilon: float, delta: float | None, procedure: Procedure, risk: Risk | None, task: Task) -> None:
    """Refuses a guarantee that cannot be given, before any work.

    Raises:
        ConfigError: EPS or DELTA is out of range, missing or one too many, or the procedure, risk and task do not go
            together.
    """
    if procedure not in ("learn_then_test", "conformal") or risk not in (None, "metric_drop", "disagreement"):
        raise ConfigError(
            f"guarantee: expected learn_then_test or conformal, and a known risk, got {procedure}, {risk}."
        )
    if not 0 < epsilon < 1 or not (delta is None or 0 < delta < 1):
        got = f"{epsilon:g}" if delta is None else f"{epsilon:g},{delta:g}"
        raise ConfigError(f"guarantee {got}: expected EPS and DELTA of more than 0, less than 1, such as 0.02,0.1.")
    if procedure == "learn_then_test" and delta is None:
        raise ConfigError(f"guarantee {epsilon:g}: expected EPS,DELTA, such as {epsilon:g},0.1.")
    if procedure == "conformal" and delta is not None:
        raise ConfigError("guarantee: the conformal procedure promises EPS on average over draws; leave out DELTA.")
    if procedure == "conformal" and risk == "metric_drop":
        raise ConfigError(
            "guarantee: the conformal procedure bounds disagreement; use learn_then_test for metric_drop."
        )
    if not task.HAS_PROBABILITIES:
        raise ConfigError(
            f"guarantee: it is about answers that are alike or not, and {task.METRIC} of numbers has no such; "
            "tune with --budget min-metric=X."
        )


def check_independence(trials: Trials) -> None:
    """Refuses a bundle whose answers depend on who shares the batch, since nothing can be promised of a text then.

    Raises:
        ConfigError: It measures the scale of activations over each batch.
    """
    quantization = trials.manifest.quantization
    if quantization is not None and quantization.mode == "dynamic":
        raise ConfigError(
            f"{trials.model.bundle.path}: its activations get one scale for the whole batch, so that an answer can "
            "depend on its batch mates and nothing can be promised of a text; quantize with --mode static."
        )


def losses(trial: Trial, full: Trial, risk: Risk, task: Task, targets: NDArray[Any] | None) -> NDArray[np.float64]:
    """Returns each text's loss against full depth, 0 to 1, float64 [texts].

    `metric_drop`: how much of its part in the metric is lost, a gain counting as 0; of labels: 1 where full depth is
    right and this is wrong. `disagreement`: 1 where the answers differ.
    """
    if risk == "disagreement":
        return np.asarray(trial.predictions != full.predictions, np.float64)
    assert task.per_text is not None
    assert targets is not None
    before, after = (task.per_text(entry.predictions, targets).astype(np.float64) for entry in (full, trial))
    return np.clip(before - after, 0.0, 1.0)


def learn_then_test(
    trials: Trials, policies: Sequence[str], risk: Risk, epsilon: float, delta: float
) -> tuple[Trial, Guarantee, list[dict[str, Any]]]:
    """Chooses the cheapest setting of which the data show, at the level delta, that its risk is at most epsilon.

    Returns:
        The setting, full depth if none; what it promises; and every test made, as plain data.

    Raises:
        ConfigError: A policy's answers depend on the batch.
    """
    orders = [(name, order) for name in policies for order in _orders(trials, name)]
    tests: list[dict[str, Any]] = []
    accepted = [trials.full]
    n = len(trials.full.predictions)

    for name, order in orders:
        if order and depends_on_batch(trials.policy(name, order[0])):
            raise ConfigError(f"policy {name}: its answers depend on the batch, so nothing can be promised of a text.")

    def p_values(name: str, order: Sequence[Knobs]) -> Iterator[float]:
        for knobs in order:
            trial = trials.measure(name, knobs)
            mean = float(losses(trial, trials.full, risk, trials.model.task, trials.targets).mean())
            p = float(hoeffding_bentkus(mean, n, epsilon))
            tests.append({"policy": name, "knobs": knobs, "risk": mean, "p_value": p, "level": delta / len(orders)})
            yield p

    with trials.reporter.track("tests", len(orders)) as advance:
        for name, order in orders:
            count = fixed_sequence(p_values(name, order), delta / len(orders))
            accepted += [trials.measure(name, knobs) for knobs in order[:count]]
            advance(1, name)
    chosen = min(accepted, key=lambda trial: trial.cost_ratio)
    promise = Guarantee(procedure="learn_then_test", risk=risk, epsilon=epsilon, delta=delta, texts=n)
    return chosen, promise, tests


def conformal_consistency(
    trials: Trials, policies: Sequence[str], epsilon: float
) -> tuple[Trial, Guarantee, list[dict[str, Any]]]:
    """Chooses the threshold of certainty that CATs' shared procedure gives; of several policies, the first with one.

    Returns:
        The setting, full depth if the threshold is infinite; what it promises; and the threshold, as plain data.

    Raises:
        ConfigError: No policy stops by how sure an exit is, or the model has no exits to record.
    """
    exits = [decision.outputs for decision in trials.recorded or () if decision.kind == "exit"]
    for name in policies if exits else ():
        base = trials.rule[1] if name == trials.rule[0] else {}
        policy = trials.policy(name, base)
        certainty = [policy.certainty(outputs) for outputs in exits]
        known = [values for values in certainty if values is not None]
        if len(known) != len(exits):
            continue
        answers = np.stack([own_scores(outputs).argmax(axis=-1) for outputs in exits], axis=1)
        threshold = shared_threshold(np.stack(known, axis=1), answers == trials.full.predictions[:, None], epsilon)
        trial = trials.full
        if np.isfinite(threshold):
            trial = trials.measure(name, {**base, **policy.stop_above(threshold)})
        texts = len(trials.full.predictions)
        promise = Guarantee(procedure="conformal", risk="disagreement", epsilon=epsilon, delta=None, texts=texts)
        return trial, promise, [{"policy": name, "certainty": threshold if np.isfinite(threshold) else None}]
    raise ConfigError(
        f"guarantee: the conformal procedure needs a policy that stops by how sure an exit is (confidence, entropy), "
        f"got {', '.join(policies)}; use learn_then_test."
    )


def _orders(trials: Trials, name: str) -> list[list[Knobs]]:
    """Returns the orders in which a policy's settings are tested; without a grid, its settings in the bundle."""
    parts = _PARTS if trials.is_followed else 1
    orders = [subdivide(knob, settings, parts) for knob, settings in series_of(name, trials.rule)]
    if orders:
        return orders
    # What was chosen after training may have been chosen on these very texts.
    return [distinct(known_settings(trials, name, of_training=True))]
