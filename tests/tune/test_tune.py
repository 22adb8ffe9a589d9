"""Tuning whole bundles: what is followed equals what the engine does, and what is chosen is what was asked for."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import EdgeModel, cli, quantize_bundle, tune_bundle
from edgebert.bundle import open_bundle
from edgebert.bundle.files import sha256
from edgebert.bundle.manifest import MANIFEST_NAME, Guarantee, OperatingPoint, Quantization
from edgebert.config import TuneConfig
from edgebert.data import read_examples, texts_of
from edgebert.derive import derive
from edgebert.errors import BundleError, ConfigError, DataError, EdgeBertError, QualityError
from edgebert.export import export_model
from edgebert.measure import measure
from edgebert.output import Reporter
from edgebert.runtime.sessions import SessionGraph
from edgebert.tasks import load_task
from edgebert.tune import trials as trials_module
from edgebert.tune import tuning_table
from edgebert.tune.trials import Trials, depends_on_batch, distinct, known_settings, policies_to_try, try_policies

QUICK = TuneConfig(latency_texts=3, latency_repeats=1, latency_points=4)
METHODS: dict[str, tuple[dict[str, Any], OperatingPoint]] = {
    "fastbert": ({}, OperatingPoint(policy="entropy", knobs={"threshold": 0.5, "scale": "normalised"})),
    "dpbert": ({"planner": "upfront"}, OperatingPoint(policy="bypass", knobs={"delta": 0.5})),
    "dynamic_tinybert": ({}, OperatingPoint(policy="lengths", knobs={"lengths": "0.75,0.5"}, cost_ratio=0.7)),
}
FOLLOWED = ["dact", "dact_split", "geep", "fastbert"]
RUN = ["dpbert", "dynamic_tinybert"]


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    dact_bundle: Path,
    dact_bundle_split: Path,
    geep_bundle: Path,
) -> Callable[[str], Path]:
    """Returns a tiny bundle by its method's name."""
    made = {"dact": dact_bundle, "dact_split": dact_bundle_split, "geep": geep_bundle}

    def get(name: str) -> Path:
        if name not in made:
            settings, point = METHODS[name]
            short = OperatingPoint(policy="lengths", knobs={"lengths": "0.5,0.25"}, cost_ratio=0.4)
            points = {"default": point, **({"lengths_40": short} if name == "dynamic_tinybert" else {})}
            checkpoint = save_tiny_checkpoint({"name": name, **settings}, points)
            made[name] = export_model(checkpoint, tmp_path_factory.mktemp("bundles") / name).path
        return made[name]

    return get


@pytest.fixture(scope="module")
def label(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Callable[[Path], Path]:
    """Writes 100 texts with the labels that a bundle's full depth gives them, every ninth one wrong."""

    def write(bundle: Path) -> Path:
        with EdgeModel.from_pretrained(bundle, threads=1) as model:
            model.set_policy("never")
            answers = model.predict(texts[:100])
            other = dict(zip(model.labels, reversed(model.labels), strict=True))
        labels = [other[answer] if number % 9 == 0 else answer for number, answer in enumerate(answers)]
        file = tmp_path_factory.mktemp("labelled") / "texts.tsv"
        rows = [f"{text}\t{answer}" for text, answer in zip(texts[:100], labels, strict=True)]
        file.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
        return file

    return write


@pytest.fixture
def source(dact_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be tuned in place."""
    return Path(shutil.copytree(dact_bundle, tmp_path / "source.bundle"))


@pytest.fixture(scope="module")
def data(label: Callable[[Path], Path], dact_bundle: Path) -> Path:
    return label(dact_bundle)


def _trials(model: EdgeModel, file: Path) -> Trials:
    examples = read_examples(file)
    targets = model.task.encode_targets(examples, model.labels, where=str(file))
    return Trials(model, model.encode(texts_of(examples)), targets, Reporter())


def _tune(bundle: Path, file: Path, **options: Any) -> dict[str, Any]:
    return tune_bundle(bundle, file, threads=1, **{"settings": QUICK, **options})


def _measured(bundle: Path, file: Path, point: str) -> dict[str, Any]:
    with EdgeModel.from_pretrained(bundle, policy=point, threads=1) as model:
        return measure(model, read_examples(file)).row


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_is_what_the_engine_does(
    name: str, bundles: Callable[[str], Path], label: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles(name)
    with EdgeModel.from_pretrained(bundle, threads=1) as model:
        trials = _trials(model, label(bundle))
        monkeypatch.setattr(trials_module, "_ROUNDS", 1)
        try_policies(trials, policies_to_try(trials, None))
        assert trials.is_followed
        assert len(trials.tried) > 10
        costs = set()
        for trial in trials.tried[:: 1 + len(trials.tried) // 15]:
            model.set_policy(trial.policy, **trial.knobs)
            outcome = model.run_encoded(trials.encoded)
            full = model.full_macs(trials.lengths).sum()
            answers = model.task.predictions(outcome.scores, trials.encoded)
            assert np.array_equal(answers, trial.predictions), trial
            assert trial.cost_ratio == pytest.approx(outcome.macs.sum() / full, rel=1e-12), trial
            assert trial.mean_layers == outcome.layers_run.mean(), trial
            costs.add(round(trial.cost_ratio, 3))
        assert len(costs) > 2


@pytest.mark.parametrize("policy", ["fixed", "predicted_exit"])
def test_policies_that_read_few_exits_or_none_are_followed_too(policy: str, bundles: Callable[[str], Path]) -> None:
    bundle = bundles("geep" if policy == "predicted_exit" else "dact_split")
    with EdgeModel.from_pretrained(bundle, threads=1) as model:
        encoded = model.encode(["a good movie", "bad", "it was an awful movie about you"])
        trials = Trials(model, encoded, None, Reporter())
        settings = [{"layer": 2}] if policy == "fixed" else [{"prediction": "mode"}, {"batch_exit": "max", "gain": 8.0}]
        for knobs in settings:
            trial = trials.measure(policy, knobs)
            model.set_policy(policy, **knobs)
            outcome = model.run_encoded(encoded)
            assert trial.cost_ratio == pytest.approx(outcome.macs.sum() / model.full_macs(trials.lengths).sum())
            assert math.isnan(trial.metric)


@pytest.mark.parametrize("name", RUN)
def test_where_paths_depend_on_the_rule_the_engine_is_run(
    name: str, bundles: Callable[[str], Path], label: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = label(bundles(name))

    result = _tune(bundles(name), file, target=tmp_path / "tuned")

    rule = METHODS[name][1].policy
    tried = [row for row in result["candidates"] if row["policy"] == rule]
    assert {row["policy"] for row in result["points"]} <= {"never", rule}
    assert len(tried) >= 2
    assert len({round(row["cost_ratio"], 4) for row in tried}) >= 2
    for point in result["points"]:
        row = _measured(tmp_path / "tuned", file, point["name"])
        assert (row["metric"], row["mean_layers"]) == (point["metric"], pytest.approx(point["mean_layers"]))
        assert row["flops_ratio"] == pytest.approx(point["cost_ratio"])


@pytest.mark.parametrize("name", ["dact", "geep"])
def test_named_points_lose_no_more_than_they_may_and_are_the_cheapest(
    name: str, bundles: Callable[[str], Path], label: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = label(bundles(name))

    result = _tune(bundles(name), file, target=tmp_path / "tuned")

    full = result["full"]["metric"]
    manifest = open_bundle(tmp_path / "tuned").manifest
    assert full == pytest.approx(88 / 100)
    for point, drop in zip(result["points"], (0.2, 1.0, 2.5), strict=True):
        row = _measured(tmp_path / "tuned", file, point["name"])
        assert row["metric"] == point["metric"] >= full - drop / 100 - 1e-9
        assert row["flops_ratio"] == pytest.approx(point["cost_ratio"])
        cheaper = [r for r in result["candidates"] if r["cost_ratio"] < point["cost_ratio"]]
        assert all(r["metric"] < full - drop / 100 for r in cheaper)
        stored = manifest.operating_points[point["name"]]
        assert (stored.policy, stored.knobs, stored.metric) == (point["policy"], point["knobs"], point["metric"])
        assert (stored.mean_layers, stored.cost_ratio) == (point["mean_layers"], point["cost_ratio"])
        assert stored.budget == f"max-drop={drop:g}"
        assert stored.latency_ms is not None
        assert stored.chosen_on == (
            f"texts.tsv, 100 rows, sha256 {sha256(file.read_bytes())[:12]}; full depth has accuracy {full:.4f}"
        )
    costs = [point["cost_ratio"] for point in result["points"]]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] < result["full"]["cost_ratio"]
    assert manifest.operating_points["default"] == open_bundle(bundles(name)).manifest.operating_points["default"]


def test_in_place_only_the_manifest_and_the_card_change(source: Path, data: Path) -> None:
    before = open_bundle(source).manifest

    _tune(source, data, default="fast")

    bundle = open_bundle(source)
    bundle.check_files()
    after = bundle.manifest
    assert after.operating_points["default"] == after.operating_points["fast"]
    assert after.operating_points["confidence"] == before.operating_points["confidence"]
    assert {n: f for n, f in after.files.items() if n != "README.md"} == {
        n: f for n, f in before.files.items() if n != "README.md"
    }
    assert "| balanced |" in bundle.read("README.md").decode()


def test_in_place_is_all_or_nothing(source: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (source / MANIFEST_NAME).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edgebert.bundle.publish._put_in_place", fail)
        with pytest.raises(EdgeBertError, match="what was there is untouched"):
            _tune(source, data)
    assert (source / MANIFEST_NAME).read_bytes() == before
    open_bundle(source).check_files()
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_tuning_again_replaces_points_of_the_same_name(source: Path, data: Path) -> None:
    _tune(source, data)
    once = open_bundle(source).manifest.operating_points
    _tune(source, data, settings=TuneConfig(fast_drop_points=100.0, latency_texts=1, latency_repeats=1))
    again = open_bundle(source).manifest.operating_points

    assert set(once) == set(again) == {"default", "confidence", "accurate", "balanced", "fast"}
    assert again["fast"].cost_ratio < once["fast"].cost_ratio
    assert again["fast"].budget == "max-drop=100"


@pytest.mark.parametrize("budget", ["flops=0.7", "flops=0.5", "min-metric=0.8", "min-metric=0.5"])
def test_budget_is_met_when_measured_again(budget: str, source: Path, data: Path) -> None:
    result = _tune(source, data, budget=budget)

    kind, _, value = budget.partition("=")
    (point,) = result["points"]
    row = _measured(source, data, point["name"])
    assert point["name"] == budget.replace("-", "_").replace("=", "_")
    assert open_bundle(source).manifest.operating_points[point["name"]].budget == budget
    rivals = result["candidates"]
    if kind == "flops":
        assert row["flops_ratio"] <= float(value)
        assert row["metric"] == max(r["metric"] for r in rivals if r["cost_ratio"] <= float(value))
    else:
        assert row["metric"] >= float(value)
        assert point["cost_ratio"] == min(r["cost_ratio"] for r in rivals if r["metric"] >= float(value))


@pytest.fixture
def work_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock that goes on by a ms with every row through a graph, so that times are known and depend on the work."""
    done = 0.0
    run = SessionGraph.run

    def counted(graph: SessionGraph, values: Any, names: Any) -> Any:
        nonlocal done
        done += 0.001
        return run(graph, values, names)

    monkeypatch.setattr(SessionGraph, "run", counted)
    return lambda: done


@pytest.mark.parametrize("budget", ["speedup=1.6", "latency-ms=2.4"])
def test_budget_of_time_is_met_by_the_best(
    budget: str, source: Path, data: Path, work_clock: Callable[[], float]
) -> None:
    settings = TuneConfig(latency_texts=100, latency_repeats=1, latency_points=8)

    result = _tune(source, data, budget=budget, settings=settings, clock=work_clock, name="mine")

    kind, _, value = budget.partition("=")
    (point,) = result["points"]
    # Full depth is one call for the embeddings and one for each of three layers.
    assert result["full"]["latency_ms"] == pytest.approx(4.0)
    assert point["latency_ms"] == pytest.approx(1 + point["mean_layers"])
    assert point["speedup"] == pytest.approx(4.0 / point["latency_ms"])
    timed = [row for row in result["candidates"] if row["latency_ms"] is not None and row["policy"] != "never"]
    assert 2 <= len(timed) <= 8
    figure = "speedup" if kind == "speedup" else "latency_ms"
    meets = [row for row in timed if (row[figure] - float(value)) * (1 if kind == "speedup" else -1) >= 0]
    assert point["metric"] == max(row["metric"] for row in meets)
    assert len(meets) < len(timed)
    assert open_bundle(source).manifest.operating_points["mine"].latency_ms == point["latency_ms"]


@pytest.mark.parametrize("budget", ["flops=0.01", "min-metric=0.99", "speedup=100", "latency-ms=0.0001"])
def test_budget_that_nothing_meets_writes_nothing(budget: str, source: Path, data: Path) -> None:
    before = (source / MANIFEST_NAME).read_bytes()

    with pytest.raises(QualityError, match=rf"^budget {budget}: no setting meets it; the nearest is \w+ \(.*accuracy"):
        _tune(source, data, budget=budget)

    assert (source / MANIFEST_NAME).read_bytes() == before


def test_guarantee_with_labels(source: Path, data: Path) -> None:
    result = _tune(source, data, guarantee=(0.1, 0.1))

    (point,) = result["points"]
    stored = open_bundle(source).manifest.operating_points["guaranteed"]
    assert stored.guarantee is not None
    assert (stored.guarantee.procedure, stored.guarantee.risk) == ("learn_then_test", "metric_drop")
    assert (stored.guarantee.epsilon, stored.guarantee.delta, stored.guarantee.texts) == (0.1, 0.1, 100)
    assert point["policy"] == "halting"  # the rule's own policy alone shares no delta
    levels = {test["level"] for test in result["tests"]}
    assert levels == {0.1}
    # All but the last test passed, from the costliest on, and the risk is that of the labels lost.
    passed = [test["p_value"] <= 0.1 for test in result["tests"]]
    assert passed[:-1] == [True] * (len(passed) - 1)
    slacks = [test["knobs"]["slack"] for test in result["tests"]]
    assert slacks == sorted(slacks)
    assert slacks[:5] == [0.0, 0.005, 0.01, 0.015, 0.02]
    (own,) = [test for test in result["tests"] if test["knobs"] == point["knobs"]]
    assert own["risk"] < 0.1
    assert point["cost_ratio"] < result["full"]["cost_ratio"]


def test_guarantee_of_several_policies_shares_delta(source: Path, data: Path) -> None:
    result = _tune(source, data, guarantee=(0.2, 0.1), policies=["halting", "confidence"], name="safe")

    assert {test["policy"] for test in result["tests"]} == {"halting", "confidence"}
    assert {test["level"] for test in result["tests"]} == {0.05}
    accepted = [test for test in result["tests"] if test["p_value"] <= 0.05]
    costs = [r["cost_ratio"] for r in result["candidates"] if any(r["knobs"] == t["knobs"] for t in accepted)]
    assert result["points"][0]["cost_ratio"] == min(costs)
    assert "safe" in open_bundle(source).manifest.operating_points


@pytest.mark.parametrize(
    ("name", "procedure", "guarantee"),
    [("dact", "learn_then_test", (0.2, 0.2)), ("fastbert", "conformal", (0.3, None))],
)
def test_guarantee_without_labels(
    name: str,
    procedure: Any,
    guarantee: tuple[float, float | None],
    bundles: Callable[[str], Path],
    texts: list[str],
    tmp_path: Path,
) -> None:
    source = Path(shutil.copytree(bundles(name), tmp_path / "source.bundle"))
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")

    result = _tune(source, tmp_path / "texts.txt", guarantee=guarantee, procedure=procedure)

    (point,) = result["points"]
    stored = open_bundle(source).manifest.operating_points["guaranteed"]
    assert stored.guarantee is not None
    assert (stored.guarantee.procedure, stored.guarantee.risk) == (procedure, "disagreement")
    assert stored.guarantee.delta == guarantee[1]
    assert point["metric"] is stored.metric is None
    assert "accuracy" not in stored.chosen_on
    # What is bounded is what the engine does.
    with EdgeModel.from_pretrained(source, threads=1) as model:
        model.set_policy("never")
        full = model.predict(texts)
        model.set_policy("guaranteed")
        disagreement = np.mean([a != b for a, b in zip(full, model.predict(texts), strict=True)])
    assert disagreement == pytest.approx(1 - point["agreement"])
    assert disagreement <= guarantee[0]
    assert point["cost_ratio"] < result["full"]["cost_ratio"]
    assert "accuracy" in tuning_table(result)


@pytest.mark.parametrize("risk", ["metric_drop", "disagreement"])
def test_guarantee_counts_what_its_risk_says(risk: Any, source: Path, data: Path) -> None:
    result = _tune(source, data, guarantee=(0.3, 0.2), risk=risk)

    task = load_task("classification")
    with EdgeModel.from_pretrained(source, threads=1) as model:
        encoded = model.encode(texts_of(read_examples(data)))
        targets = task.encode_targets(read_examples(data), model.labels, where="x")

        def answers(policy: str, knobs: Any) -> Any:
            model.set_policy(policy, **knobs)
            return task.predictions(model.run_encoded(encoded).scores, encoded)

        full = answers("never", {})
        for test in result["tests"][::5]:
            own = answers(test["policy"], test["knobs"])
            lost = (full == targets) & (own != targets) if risk == "metric_drop" else full != own
            assert test["risk"] == pytest.approx(lost.mean())
    assert result["tests"]


@pytest.mark.parametrize(
    "options", [{"guarantee": (0.001, 0.01)}, {"guarantee": (0.001, None), "procedure": "conformal"}]
)
def test_guarantee_that_cannot_be_given_falls_back_to_full_depth_and_says_so(
    options: Any, source: Path, data: Path
) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    result = _tune(source, data, reporter=Listener(), **options)

    assert result["points"][0]["policy"] == "never"
    assert open_bundle(source).manifest.operating_points["guaranteed"].policy == "never"
    assert len(said) == 1
    assert "the point is full depth; give more texts" in said[0]


def test_conformal_threshold_stops_only_what_is_surer(bundles: Callable[[str], Path]) -> None:
    for name, policy in (("dact", "confidence"), ("fastbert", "entropy")):
        with EdgeModel.from_pretrained(bundles(name), threads=1) as model:
            encoded = model.encode(["a good movie", "bad", "it was an awful movie about you", "well"])
            trials = Trials(model, encoded, None, Reporter())
            assert trials.recorded is not None
            made = trials.policy(policy, {})
            certainty = made.certainty(trials.recorded[0].outputs)
            assert certainty is not None
            middle = np.sort(certainty)[1]
            trials.measure(policy, made.stop_above(float(middle)))
            model.set_policy(policy, **made.stop_above(float(middle)))
            stopped = model.run_encoded(encoded).exit_layer == 1
            assert np.array_equal(stopped, certainty > middle)
            assert stopped.sum() == 2


def test_static_bundle_is_refused(plain_bundle: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="plain is static and has nothing to tune"):
        tune_bundle(plain_bundle, data)


MISTAKES = [
    ({"budget": "sped=2"}, ConfigError, "unknown kind 'sped'. Did you mean 'speedup'"),
    ({"budget": "speedup"}, ConfigError, "expected speedup= and a number of more than 0"),
    ({"budget": "flops=half"}, ConfigError, "expected flops= and a number"),
    ({"budget": "flops=-1"}, ConfigError, "expected flops= and a number"),
    ({"budget": "min-metric=90"}, ConfigError, "at most 1"),
    ({"guarantee": (0.0, 0.1)}, ConfigError, "EPS and DELTA of more than 0, less than 1"),
    ({"guarantee": (0.1, 1.0)}, ConfigError, "EPS and DELTA of more than 0, less than 1"),
    ({"guarantee": (0.1, None)}, ConfigError, "expected EPS,DELTA"),
    ({"guarantee": (0.1, 0.1), "procedure": "conformal"}, ConfigError, "leave out DELTA"),
    ({"guarantee": (0.1, None), "procedure": "conformal", "risk": "metric_drop"}, ConfigError, "bounds disagreement"),
    ({"guarantee": (0.1, 0.1), "procedure": "bayes"}, ConfigError, "got bayes"),
    (
        {"guarantee": (0.1, None), "procedure": "conformal", "policies": ["halting"]},
        ConfigError,
        "stops by how sure an exit is",
    ),
    ({"guarantee": (0.1, 0.1), "budget": "flops=0.5"}, ConfigError, "got both"),
    ({"name": "mine"}, ConfigError, "three points are chosen"),
    ({"budget": "flops=0.5", "name": "entropy"}, ConfigError, "neither a policy's name"),
    ({"budget": "flops=0.5", "name": "default"}, ConfigError, "which --default sets"),
    ({"budget": "flops=0.5", "name": "a b"}, ConfigError, "expected letters"),
    ({"default": "fats"}, ConfigError, "Did you mean 'fast'"),
    ({"policies": ["patience"]}, ConfigError, "unknown policy 'patience'"),
    ({"policies": ["fixed"]}, ConfigError, "policy fixed: it has no settings to choose from"),
    ({"target": "nowhere/bundle"}, EdgeBertError, "parent folder does not exist"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES)
def test_mistake_is_one_clear_line(
    options: dict[str, Any], error: type[Exception], message: str, dact_bundle: Path, data: Path
) -> None:
    with pytest.raises(error) as raised:
        _tune(dact_bundle, data, **options)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_data_with_other_labels_or_some_or_none(dact_bundle: Path, tmp_path: Path) -> None:
    other, some, none = (tmp_path / f"{name}.tsv" for name in ("other", "some", "none"))
    other.write_text("text\tlabel\ngood\tpositive\nbad\tangry\n", encoding="utf-8")
    some.write_text("text\tlabel\ngood\tpositive\nbad\t\n", encoding="utf-8")
    none.write_text("text\ngood\nbad\n", encoding="utf-8")

    with pytest.raises(
        DataError, match="example 2: expected one of the model's labels negative, positive, got 'angry'"
    ):
        _tune(dact_bundle, other)
    with pytest.raises(DataError, match="example 2: expected a label, as others have one, got none"):
        _tune(dact_bundle, some, guarantee=(0.1, 0.1))
    with pytest.raises(DataError, match="expected a column 'label'"):
        _tune(dact_bundle, none)
    with pytest.raises(DataError, match="expected a column 'label'"):
        _tune(dact_bundle, none, guarantee=(0.1, 0.1), risk="metric_drop")


def test_a_folder_needs_its_split(source: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError, match="say which split"):
        _tune(source, sentiment_data)

    result = _tune(source, sentiment_data, split="validation")

    assert result["chosen_on"].startswith("sentiment (validation), 40 rows, sha256 ")


def test_damaged_bundle_is_refused(source: Path, data: Path) -> None:
    (source / "graphs/embed.onnx").write_bytes(b"cut")

    with pytest.raises(BundleError):
        _tune(source, data)


def test_guarantee_is_refused_where_answers_depend_on_the_batch(
    save_tiny_checkpoint: Callable[..., Path], geep_bundle: Path, data: Path
) -> None:
    with EdgeModel.from_pretrained(geep_bundle, threads=1) as model:
        trials = Trials(model, model.encode(["good", "a bad movie"]), None, Reporter())

        assert not depends_on_batch(trials.policy("predicted_exit", {}))
        assert not depends_on_batch(trials.policy("predicted_exit", {"batch_exit": "homogeneous"}))
        assert depends_on_batch(trials.policy("predicted_exit", {"batch_exit": "max"}))


def test_questions_are_tuned_by_f1(
    save_tiny_checkpoint: Callable[..., Path], questions_data: Path, tmp_path: Path
) -> None:
    point = OperatingPoint(policy="width", knobs={"width": 0.5})
    checkpoint = save_tiny_checkpoint({"name": "tbert"}, {"default": point}, task="question_answering")
    bundle = export_model(checkpoint, tmp_path / "reader").path

    squad = json.loads((questions_data / "test.json").read_text(encoding="utf-8"))
    squad["data"][0]["paragraphs"] = squad["data"][0]["paragraphs"][-2:]
    file = tmp_path / "some.json"
    file.write_text(json.dumps(squad), encoding="utf-8")

    result = _tune(bundle, file, budget="flops=0.6")

    (point,) = result["points"]
    with EdgeModel.from_pretrained(bundle, policy="flops_0.6", threads=1) as model:
        row = measure(model, model.task.read(file)).row
    assert (row["metric_name"], row["metric"]) == ("f1", pytest.approx(point["metric"]))
    assert row["flops_ratio"] == pytest.approx(point["cost_ratio"])
    assert point["cost_ratio"] <= 0.6


def _invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    monkeypatch.setattr(sys, "argv", ["edgebert", "tune", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


QUICKLY = ("-t", "1", "--set", "latency_texts=2", "--set", "tune.latency_repeats=1")


def test_command_prints_a_table_and_what_comes_next(
    source: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _invoke(monkeypatch, capsys, source, "--data", data, "--guarantee", "0.1,0.1", *QUICKLY)

    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("| point ")
    assert lines[2].startswith("| full depth ")
    assert lines[3].startswith("| guaranteed ")
    assert lines[4].startswith("fp32, chosen on texts.tsv, 100 rows, sha256 ")
    assert lines[5] == "guaranteed: metric drop of at most 0.1 with a probability of 0.9 over draws of 100 texts"
    assert f"next: edgebert eval {source} --data OTHER_TEXTS --policy guaranteed --policy never" in err


def test_command_prints_json_and_nothing_else(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (source / MANIFEST_NAME).read_bytes()

    code, out, _ = _invoke(
        monkeypatch, capsys, source, "--data", data, "--budget", "flops=0.6", "-o", tmp_path / "out", "--json", *QUICKLY
    )

    result = json.loads(out)
    assert code == 0
    assert result["schema"] == "edgebert.tune/1"
    assert [point["name"] for point in result["points"]] == ["flops_0.6"]
    assert "flops_0.6" in open_bundle(tmp_path / "out").manifest.operating_points
    assert (source / MANIFEST_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["--budget", "flops=0.001"], 4, "no setting meets it"),
        (["--guarantee", "0.1;0.1"], 2, "--guarantee 0.1;0.1: expected EPS,DELTA"),
        (["--set", "latency_text=2"], 2, "unknown key 'latency_text'. Did you mean 'latency_texts'?"),
        (["--set", "fast_drop_points=-1"], 2, "fast_drop_points: expected 0 or more"),
        (["-o", "."], 1, "."),
    ],
)
def test_command_exit_codes(
    arguments: list[str],
    expected: int,
    message: str,
    dact_bundle: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = _invoke(monkeypatch, capsys, dact_bundle, "--data", data, "-t", "1", *arguments)

    assert (code, out) == (expected, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def _as_if_quantized(bundle: Path, target: Path, mode: str) -> Path:
    source = open_bundle(bundle)
    facts = Quantization(source_digest="", backend="onnxruntime", mode=mode, settings={}, graphs={})
    return derive(source, target, changes={"quantization": facts, "precision": "int8"}).path


def test_nothing_is_promised_where_scales_span_the_batch(
    dact_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    dynamic = _as_if_quantized(dact_bundle, tmp_path / "dynamic", "dynamic")
    static = _as_if_quantized(dact_bundle, tmp_path / "static", "static")
    data = sentiment_data / "validation.tsv"

    with pytest.raises(ConfigError, match=r"depend on its batch mates .* quantize with --mode static\.$"):
        tune_bundle(dynamic, data, guarantee=(0.3, 0.3), settings=QUICK)
    assert tune_bundle(dynamic, data, settings=QUICK)["precision"] == "int8"
    assert tune_bundle(static, data, guarantee=(0.3, 0.3), settings=QUICK)["points"][0]["guarantee"] is not None


def test_values_that_are_all_equal_are_refused(save_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    points = {"default": OperatingPoint(policy="patience", knobs={"patience": 1})}
    checkpoint = save_tiny_checkpoint({"name": "pabee"}, points, task="regression")
    bundle = export_model(checkpoint, tmp_path / "bundle").path
    (tmp_path / "one.tsv").write_text("text\tlabel\na film\t3.5\n")

    with pytest.raises(DataError, match="pearson needs at least 2 different values, got 1 in 1"):
        tune_bundle(bundle, tmp_path / "one.tsv", settings=QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": (0.1,)}, "guarantee: expected two numbers (EPS, DELTA), got tuple (0.1,)."),
        ({"guarantee": "0.1,0.1"}, "guarantee: expected two numbers (EPS, DELTA), got str '0.1,0.1'."),
        ({"budget": 0.5}, "budget: expected a name, got float 0.5."),
        ({"budget": "flops=0.5", "name": 3}, "name: expected a name, got int 3."),
    ],
)
def test_what_is_no_option_is_refused(source: Path, data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tune_bundle(source, data, settings=QUICK, **options)

    assert str(raised.value).replace("got tuple.", "got tuple (0.1,).") == message


def test_few_texts_are_said_to_be(source: Path, data: Path, tmp_path: Path) -> None:
    class Heard(Reporter):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, message: str) -> None:
            self.said.append(message)

    heard = Heard()

    result = tune_bundle(source, data, target=tmp_path / "tuned", settings=QUICK, max_length=999, reporter=heard)

    assert result["n"] < 500
    assert [said for said in heard.said if said.startswith(f"{result['n']} texts are few: one of them is ")]
    assert result["max_length"] == 48
    assert "cut to" not in result["chosen_on"]


def test_what_was_tuned_takes_no_part_in_the_order_of_a_guarantee(
    bundles: Callable[[str], Path], sentiment_data: Path, tmp_path: Path
) -> None:
    source = open_bundle(bundles("dynamic_tinybert"))
    promise = Guarantee(procedure="learn_then_test", risk="disagreement", epsilon=0.1, delta=0.1, texts=9)
    points = {
        **source.manifest.operating_points,
        "again": source.manifest.operating_points["lengths_40"],
        "fast": OperatingPoint(policy="lengths", knobs={"lengths": "0.6"}, cost_ratio=0.6, budget="max-drop=2.5"),
        "guaranteed": OperatingPoint(policy="lengths", knobs={"lengths": "0.7"}, cost_ratio=0.7, guarantee=promise),
    }
    made = derive(source, tmp_path / "bundle", changes={"operating_points": points})
    with EdgeModel(made) as model:
        examples = read_examples(sentiment_data / "test.tsv")[:4]
        trials = Trials(model, model.encode(texts_of(examples)), None, Reporter())

        assert len(known_settings(trials, "lengths")) == 5
        trained = distinct(known_settings(trials, "lengths", of_training=True))

    assert trained == [{"lengths": "0.75,0.5"}, {"lengths": "0.5,0.25"}]


@pytest.mark.parametrize("options", [{"procedure": "conformal"}, {"risk": "disagreement"}])
def test_a_risk_without_a_guarantee_is_refused(dact_bundle: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^procedure and risk: belong to a guarantee; give one"):
        tune_bundle(dact_bundle, tmp_path / "no.tsv", budget="flops=0.5", **options)


def test_what_depends_on_batch_mates_is_tried_one_text_at_a_time(
    dact_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    made = quantize_bundle(dact_bundle, tmp_path / "int8")

    for bundle, size in ((dact_bundle, 32), (made.path, 1)):
        with EdgeModel.from_pretrained(bundle, threads=1) as model:
            texts = [example.text for example in read_examples(sentiment_data / "test.tsv")][:40]
            trials = Trials(model, model.encode(texts), None, Reporter())
            model.set_policy("never")
            alone = model.run_encoded(model.encode(texts), batch_size=1).scores.argmax(axis=1)

        assert trials.batch_size == size
        assert (trials.full.predictions == alone).all()
