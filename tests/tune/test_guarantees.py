"""The guarantee on a real bundle, whose 200 texts are the whole population, so that every setting's risk is known."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import EdgeModel
from edgebert.bundle.manifest import Knobs, OperatingPoint
from edgebert.config import ExportConfig
from edgebert.decisions import Decision
from edgebert.export import export_model
from edgebert.output import Reporter
from edgebert.tasks import load_task
from edgebert.tune.guarantees import conformal_consistency, learn_then_test, losses
from edgebert.tune.trials import Trial, Trials

DRAWS, TEXTS, DELTA = 1000, 150, 0.2


class Drawn(Trials):
    """Calibration texts drawn from a population that was tried already."""

    def __init__(self, population: Trials, places: np.ndarray) -> None:
        self.population, self.places = population, places
        self.model, self.manifest, self.rule = population.model, population.manifest, population.rule
        self.recorded = [_drawn(decision, places) for decision in population.recorded or ()]
        self.targets, self.reporter = None, population.reporter
        self.full = self._drawn(population.full)

    def measure(self, name: str, knobs: Knobs) -> Trial:
        return self._drawn(self.population.measure(name, knobs))

    def _drawn(self, trial: Trial) -> Trial:
        return dataclasses.replace(trial, predictions=trial.predictions[self.places])


def _drawn(decision: Decision, places: np.ndarray) -> Decision:
    return dataclasses.replace(decision, outputs={name: out[places] for name, out in decision.outputs.items()})


@pytest.fixture(scope="module")
def population(dact_bundle: Path, texts: list[str]) -> Any:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        yield Trials(model, model.encode(texts), None, Reporter())


def _risk(population: Trials, trial: Trial) -> float:
    own = population.measure(trial.policy, trial.knobs)
    return float(losses(own, population.full, "disagreement", population.model.task, None).mean())


def test_share_of_draws_that_break_the_promise(population: Trials) -> None:
    _, _, tests = learn_then_test(population, ["halting"], "disagreement", 0.99, 0.5)
    risks = sorted({test["risk"] for test in tests})
    # Just below a risk that a setting has, so that one step too far breaks it.
    epsilon = next(risk for risk in risks if risk > 0.1) - 1e-6
    tried = [population.measure("halting", test["knobs"]) for test in tests]
    lost = np.stack([losses(t, population.full, "disagreement", population.model.task, None) for t in tried])
    rng = np.random.default_rng(0)
    chosen, by_mean = [], []
    for _ in range(DRAWS):
        drawn = Drawn(population, rng.integers(0, 200, TEXTS))
        trial, promise, walked = learn_then_test(drawn, ["halting"], "disagreement", epsilon, DELTA)
        chosen.append(_risk(population, trial))
        count = int((lost[:, drawn.places].mean(axis=1) <= epsilon).cumprod().sum())
        by_mean.append(lost[count - 1].mean() if count else 0.0)

    assert promise.texts == TEXTS
    assert walked
    assert np.mean(np.array(chosen) > epsilon) <= DELTA
    assert np.mean(chosen) > 0
    assert np.mean(np.array(by_mean) > epsilon) > 2 * DELTA


def test_conformal_consistency_never_stops_at_a_wrong_exit_more_often_than_it_says(population: Trials) -> None:
    # This model's last exit is not its answer of full depth, so that only a large bound leaves anything to choose.
    trial, promise, (found,) = conformal_consistency(population, ["halting", "confidence"], 0.7)

    assert found["policy"] == "confidence"
    assert promise.delta is None
    assert (trial is population.full) == (found["certainty"] is None)
    assert _risk(population, trial) <= 0.7


def test_conformal_threshold_holds_on_average_over_draws_and_no_lower_one_would(
    save_tiny_checkpoint: Callable[..., Path], texts: list[str], tmp_path: Path
) -> None:
    points = {"default": OperatingPoint(policy="entropy", knobs={"threshold": 0.5, "scale": "normalised"})}
    checkpoint = save_tiny_checkpoint({"name": "fastbert"}, points)
    bundle = export_model(checkpoint, tmp_path / "bundle", settings=ExportConfig(verify_samples=1))
    epsilon, generator = 0.1, np.random.default_rng(0)
    with EdgeModel.from_pretrained(bundle.path, threads=1) as model:
        population = Trials(model, model.encode(texts), None, Reporter())

        risks, certainties = [], []
        for _ in range(200):
            drawn = Drawn(population, generator.permutation(200)[:100])
            trial, _, (found,) = conformal_consistency(drawn, ["confidence"], epsilon)
            risks.append(_risk(population, trial))
            certainties.append(found["certainty"])
        everywhere = _risk(population, population.measure("confidence", {"threshold": 0.0}))

    assert 0 < np.mean(risks) <= epsilon
    assert len(set(certainties)) > 1
    assert everywhere > 2 * epsilon


@pytest.mark.parametrize(("risk", "expected"), [("metric_drop", [0.0, 0.5, 0.0]), ("disagreement", [0.0, 1.0, 1.0])])
def test_losses_of_questions_are_of_f1(risk: Any, expected: list[float]) -> None:
    facts: Any = {"policy": "p", "knobs": {}, "metric": 0.0, "mean_layers": 1.0, "cost_ratio": 1.0}
    full = Trial(predictions=np.array(["a film", "good", "bad"], object), **facts)
    own = Trial(predictions=np.array(["a film", "good plot here", "good"], object), **facts)
    targets = np.empty(3, object)
    targets[:] = [("film",), ("good",), ("good",)]

    # Of the second answer, one word of three is right and nothing is missing: F1 is 1/2. The third has gained.
    found = losses(own, full, risk, load_task("question_answering"), targets)

    assert found == pytest.approx(expected)
