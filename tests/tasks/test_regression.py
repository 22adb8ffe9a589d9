"""The task alone, and the whole road: train, export, verify, run and evaluate a tiny model on numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers
import yaml

from edgebert import EdgeModel, evaluate_bundle
from edgebert.bundle import open_bundle
from edgebert.checkpoint import build_model, load_checkpoint
from edgebert.config import RunConfig, TrainConfig
from edgebert.data import Example, read_examples, texts_of
from edgebert.encoders._blocks import Encoder
from edgebert.errors import ConfigError, DataError
from edgebert.evaluation_table import evaluation_table
from edgebert.export import export_model
from edgebert.output import Reporter
from edgebert.tasks import regression
from edgebert.training import train_model
from edgebert.verify import compare, random_inputs, verify_bundle

Invoke = Callable[..., tuple[int, str, str]]
GOOD = ["brilliant", "charming", "clever", "fresh", "funny", "good", "gripping", "moving", "rich", "warm"]
OTHER = ["a", "about", "film", "for", "from", "it", "movie", "of", "story", "that", "the", "this", "very", "was", "you"]


def _write_pairs(folder: Path) -> Path:
    """Pairs of texts with half a point for every good word: 0 to 4, in a column `stars`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, rows in (("train", 240), ("validation", 40), ("test", 40)):
        lines = ["text\ttext_pair\tstars"]
        for _ in range(rows):
            good = int(rng.integers(0, 9))
            words = rng.permutation([*rng.choice(GOOD, good), *rng.choice(OTHER, 10 - good)])
            lines.append(f"{' '.join(words[:5])}\t{' '.join(words[5:])}\t{good / 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_pairs(tmp_path_factory.mktemp("data") / "stars")


@pytest.fixture(scope="module")
def config(data: Path, tiny_hf_folder: Path) -> RunConfig:
    train = TrainConfig(
        model=str(tiny_hf_folder),
        data=str(data),
        task="regression",
        columns={"label": "stars"},
        max_length=32,
        batch_size=16,
        stage_epochs=(8.0,),
        learning_rate=2e-3,
        head_learning_rate_factor=3.0,
        tuning_rows=40,
        precision="fp32",
    )
    return RunConfig(method={"name": "plain", "pool": "cls"}, train=train)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "stars"
    train_model(config, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return export_model(checkpoint, tmp_path_factory.mktemp("bundles") / "stars").path


def _examples(*labels: str | None) -> list[Example]:
    return [Example("a", None, label) for label in labels]


@pytest.mark.parametrize(("column", "name"), [(None, "score"), ("stars", "stars")])
def test_label_names_is_the_column(column: str | None, name: str) -> None:
    assert regression.label_names(_examples("1", "2.5"), column=column) == (name,)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["2", "2.0"], "labels: expected at least 2 different numbers in 2 examples, got 2 alone; check the label"),
        ([], "labels: expected at least 2 different numbers in 0 examples, got none; check the label"),
        (["2", "two"], "labels: example 2: expected a number, got 'two'; correct it or leave it out."),
    ],
)
def test_label_names_refused(labels: list[str | None], message: str) -> None:
    with pytest.raises(DataError) as raised:
        regression.label_names(_examples(*labels))

    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("labels", "got"), [((), "none"), (("a", "b"), "'a', 'b'")])
def test_check_labels_one_name(labels: tuple[str, ...], got: str) -> None:
    regression.check_labels(("score",), where="train.labels")
    with pytest.raises(ConfigError) as raised:
        regression.check_labels(labels, where="train.labels")

    assert str(raised.value) == f"train.labels: expected one name for the one value of regression, got {got}."


def test_encode_targets_values() -> None:
    targets = regression.encode_targets(_examples("1", "-2.5", "3e-1"), ("score",), where="dev.tsv")

    assert targets.dtype == np.float64
    assert targets.tolist() == [1.0, -2.5, 0.3]


@pytest.mark.parametrize(("label", "got"), [("good", "'good'"), (None, "no label"), ("inf", "'inf'")])
def test_encode_targets_no_number(label: str | None, got: str) -> None:
    with pytest.raises(DataError) as raised:
        regression.encode_targets(_examples("1", label), ("score",), where="dev.tsv")

    assert str(raised.value) == f"dev.tsv: example 2: expected a number, got {got}; correct it or leave it out."


@pytest.mark.parametrize(
    ("predictions", "targets", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], {"pearson": 1.0, "spearman": 1.0, "mse": 378.0}),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], {"pearson": -1.0, "spearman": -1.0, "mse": 8 / 3}),
        # Deviations (-2, -1, 0, 3) and (-1.5, -0.5, 0.5, 1.5): 8 / sqrt(14 * 5). The order is the same.
        ([0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0], {"pearson": 8 / 70**0.5, "spearman": 1.0, "mse": 1.0}),
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        ([0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0], {"pearson": 0.9486833, "spearman": 0.9486833, "mse": 0.5}),
        # Constant on either side: undefined, so 0. The mean of three times 0.1 is not 0.1 in floating point.
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], {"pearson": 0.0, "spearman": 0.0, "mse": 4.27666667}),
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], {"pearson": 0.0, "spearman": 0.0, "mse": 4.27666667}),
        ([2.0], [2.0], {"pearson": 0.0, "spearman": 0.0, "mse": 0.0}),
    ],
)
def test_metrics_values(predictions: list[float], targets: list[float], expected: dict[str, float]) -> None:
    scores = regression.metrics(np.array(predictions), np.array(targets))

    assert scores == pytest.approx(expected)
    assert scores[regression.METRIC] == regression.metric(np.array(predictions), np.array(targets))


def test_metrics_equal_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    targets = rng.integers(0, 6, 200).astype(float)
    predictions = targets + rng.normal(size=200)

    scores = regression.metrics(predictions, targets)

    assert scores["pearson"] == pytest.approx(stats.pearsonr(predictions, targets).statistic)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(predictions, targets).statistic)


@pytest.mark.parametrize(("n_predictions", "n_targets"), [(0, 0), (2, 3)])
def test_metrics_wrong_lengths(n_predictions: int, n_targets: int) -> None:
    with pytest.raises(DataError, match=f"got {n_predictions} predictions for {n_targets} targets"):
        regression.metrics(np.zeros(n_predictions), np.zeros(n_targets))


def test_agreement_is_relative_to_the_references_spread() -> None:
    reference = np.array([0.0, 10.0, 0.0, 10.0])  # standard deviation 5, so 0.5 is near enough

    moved = np.array([0.4, -0.4, 0.6, 0.0])
    assert regression.agreement(reference + moved, reference) == 0.75
    assert regression.agreement(1000 * reference + moved, 1000 * reference) == 1.0
    assert regression.agreement(np.ones(2), np.ones(2)) == 1.0


def test_train_learns_the_numbers(checkpoint: Path, bundle: Path, data: Path) -> None:
    row = evaluate_bundle([bundle], [data / "test.tsv"], columns={"label": "stars"})["rows"][0]

    assert load_checkpoint(checkpoint).facts.labels == ("stars",)
    assert row["metric"] >= 0.8
    assert row["mse"] < 1.0  # always answering the mean has about 2


def test_export_and_verify(checkpoint: Path, bundle: Path) -> None:
    report = verify_bundle(bundle, reference=str(checkpoint), samples=20, tolerance=1e-5)

    manifest = open_bundle(bundle).manifest
    assert (manifest.task, manifest.labels, manifest.policies) == ("regression", ("stars",), ("never",))
    assert 0 < report["parity"]["max_difference"] <= 1e-5
    assert (report["parity"]["samples"], report["parity"]["decisions"]) == (20, 0)


def test_verify_compares_the_values_themselves(checkpoint: Path, bundle: Path) -> None:
    model = load_checkpoint(checkpoint).model
    with torch.no_grad():
        model.head.classifier.bias.add_(0.25)  # type: ignore[attr-defined]

    parity = compare(model, open_bundle(bundle), samples=8, tolerance=1.0)

    inputs = random_inputs(np.random.default_rng(0), 8, 64, open_bundle(bundle))
    with torch.no_grad():
        largest = model.eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).abs().max().item()
    assert largest > 1
    assert parity.max_difference == pytest.approx(0.25 / largest, abs=1e-4)


def test_model_answers_with_the_name_and_the_value(checkpoint: Path, bundle: Path, data: Path) -> None:
    texts = texts_of(read_examples(data / "test.tsv", columns={"label": "stars"}, label_kind="number"))

    with EdgeModel.from_pretrained(bundle) as model:
        answers = model(texts)
        rows = model.encode(texts[:1])
        logits = model.forward(np.array([rows[0].ids]), token_type_ids=np.array([rows[0].type_ids])).logits
        predicted = model.predict(texts)

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = [
            theirs(input_ids=torch.tensor([row.ids]), token_type_ids=torch.tensor([row.type_ids])).logits.item()
            for row in EdgeModel.from_pretrained(bundle).encode(texts)
        ]
    assert (theirs.config.num_labels, theirs.config.problem_type) == (1, "regression")
    assert theirs.config.id2label == {0: "stars"}
    assert {answer.label for answer in answers} == {"stars"}
    assert [answer.score for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert predicted == [answer.score for answer in answers]
    assert logits.shape == (1, 1)
    assert logits[0, 0] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model("a", top_k=1), "top_k: regression has no label probabilities to rank; leave it out."),
        (lambda model: list(model.stream(["a"], top_k=2)), "top_k: regression has no label probabilities to rank; "),
        (
            lambda model: model.predict_proba(["a"]),
            "predict_proba: regression has no label probabilities; use predict.",
        ),
    ],
)
def test_model_has_no_probabilities(bundle: Path, ask: Callable[[EdgeModel], object], message: str) -> None:
    with EdgeModel.from_pretrained(bundle) as model, pytest.raises(ConfigError) as raised:
        ask(model)

    assert str(raised.value).startswith(message)


def test_evaluate_row(bundle: Path, data: Path) -> None:
    file = data / "test.tsv"
    examples = read_examples(file, columns={"label": "stars"}, label_kind="number")

    result = evaluate_bundle([bundle], [file], columns={"label": "stars"})

    with EdgeModel.from_pretrained(bundle) as model:
        predicted = np.array(model.predict(texts_of(examples)))
    row = result["rows"][0]
    expected = np.corrcoef(predicted, [float(example.label or "") for example in examples])[0, 1]
    assert (row["metric_name"], row["n"], row["agreement"]) == ("pearson", 40, 1.0)
    assert row["metric"] == pytest.approx(expected)
    assert row["ci_low"] < row["metric"] < row["ci_high"]
    assert row["spearman"] > 0.5
    assert row["exit_histogram"] == {"all": [0, 0, 40]}
    assert "n_correct" not in row
    assert f"{row['metric']:.4f}" in evaluation_table(result)


def test_evaluate_against_another_bundle(tmp_path: Path, config: RunConfig, bundle: Path, data: Path) -> None:
    train_model(config, tmp_path / "short", max_steps=2, seed=5)
    other = export_model(tmp_path / "short", tmp_path / "other").path

    result = evaluate_bundle([bundle, other], [data / "test.tsv"], columns={"label": "stars"}, against=[str(other)])

    trained, same = (row["against"] for row in result["rows"])
    assert trained["difference"] == pytest.approx(result["rows"][0]["metric"] - result["rows"][1]["metric"])
    assert 0 < trained["ci_low"] < trained["difference"] < trained["ci_high"]
    assert (same["difference"], same["ci_low"], same["ci_high"]) == (0.0, 0.0, 0.0)
    assert "mcnemar_p" not in trained
    assert "McNemar" not in evaluation_table(result)


def test_evaluate_static_frontier_refused(bundle: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="text by text, and pearson is not a mean over texts; compare with --against"):
        evaluate_bundle([bundle], [data / "test.tsv"], columns={"label": "stars"}, against=["static-frontier"])


def test_evaluate_two_tasks_refused(bundle: Path, plain_bundle: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"one task, got regression .* and classification .*; evaluate each task on"):
        evaluate_bundle([bundle, plain_bundle], [data / "test.tsv"], columns={"label": "stars"})


def test_open_a_hugging_face_regressor(tmp_path: Path, tiny_hf_folder: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_hf_folder, num_labels=1, problem_type="regression"
    ).eval()
    theirs.save_pretrained(tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_hf_folder / name, tmp_path / "hf")

    opened = load_checkpoint(tmp_path / "hf")
    made = export_model(tmp_path / "hf", tmp_path / "bundle")

    with EdgeModel(made) as model:
        answer = model("a good film")
        ids = torch.tensor([model.encode(["a good film"])[0].ids])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits.item()
    assert opened.facts.config.train.task == "regression"
    assert answer.label == "LABEL_0"
    assert answer.score == pytest.approx(expected, abs=1e-5)


def test_build_model_refused(make_encoder: Callable[..., Encoder]) -> None:
    config = RunConfig(method={"name": "dact_bert"}, train=TrainConfig(task="regression"))

    with pytest.raises(ConfigError, match=r"^dact_bert does not do regression: its halting bound compares label prob"):
        build_model(make_encoder(), config, 1)


def test_train_labels_are_one_name(config: RunConfig, tmp_path: Path) -> None:
    two = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, labels=("low", "high")))

    with pytest.raises(ConfigError, match=r"^train\.labels: expected one name for the one value of regression"):
        train_model(two, tmp_path / "out")


def test_train_says_what_it_trains(config: RunConfig, tmp_path: Path) -> None:
    said: list[str] = []

    class Recorder(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    train_model(config, tmp_path / "out", max_steps=1, reporter=Recorder())

    assert said[0] == "plain: 200 rows to train on, 40 held out, 1 label"


def test_command_line_road(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_hf_folder: Path, data: Path
) -> None:
    """The commands a user types, with the configuration as it is shipped but for its size."""
    shipped = Path(__file__).parents[2] / "export_configs" / "plain_stsb.yaml"
    options = ["--data", data, "--model", tiny_hf_folder, "--columns", "label=stars", "--max-steps", 2]
    monkeypatch.chdir(tmp_path)

    trained = invoke("train", "-c", shipped, "-o", "ckpt", *options, "--set", "train.tuning_rows=40")
    exported = invoke("export", "ckpt", "bundle")
    verified = invoke("verify", "bundle", "--reference", "ckpt")
    table = invoke("run", "bundle", "--pair", "a good film", "a warm story")
    answered = invoke("run", "bundle", "--json", "-i", data / "test.tsv")
    evaluated = invoke("eval", "bundle", "--data", data / "test.tsv", "--columns", "label=stars", "--json")
    shown = invoke("info", "bundle")

    codes = [done[0] for done in (trained, exported, verified, table, answered, evaluated, shown)]
    assert codes == [0] * 7, [trained[2], exported[2], verified[2], evaluated[2]]
    assert "| stars |" in table[1]
    rows = json.loads(answered[1])["rows"]
    assert len(rows) == 40
    assert {row["label"] for row in rows} == {"stars"}
    assert all(isinstance(row["score"], float) for row in rows)
    assert json.loads(evaluated[1])["rows"][0]["metric_name"] == "pearson"
    assert "plain for regression" in shown[1]
    assert "labels: stars" in shown[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "BUNDLE", "a text", "--top-k", "2"], "error: top_k: regression has no label probabilities to rank"),
        (["eval", "BUNDLE", "--data", "DATA", "--columns", "label=stars", "--against", "static-frontier"], "pearson"),
        (["eval", "BUNDLE", "--data", "DATA", "--columns", "label=text"], "expected the label to be a number, got str"),
    ],
)
def test_command_line_refusals(invoke: Invoke, bundle: Path, data: Path, arguments: list[str], message: str) -> None:
    places = {"BUNDLE": str(bundle), "DATA": str(data / "test.tsv")}

    code, out, error = invoke(*(places.get(argument, argument) for argument in arguments))

    assert (code, out) == (2, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_command_line_method_that_refuses(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "dact.yaml"
    path.write_text(
        yaml.safe_dump({"method": {"name": "dact_bert"}, "train": {"task": "regression", "stage_epochs": [1.0, 1.0]}})
    )

    # Nothing is read before: the data does not exist.
    code, _, error = invoke("train", "-c", path, "-o", tmp_path / "out", "--data", tmp_path / "nothing")

    assert code == 2
    assert error.startswith("error: dact_bert does not do regression: its halting bound compares label probabilities, ")
    assert "; use " in error
    assert "plain" in error.partition("; use ")[2]
    assert not (tmp_path / "out").exists()


def test_command_line_malformed_number(invoke: Invoke, tmp_path: Path, data: Path, tiny_hf_folder: Path) -> None:
    shipped = Path(__file__).parents[2] / "export_configs" / "plain_stsb.yaml"
    shutil.copytree(data, tmp_path / "data")
    lines = (data / "train.tsv").read_text(encoding="utf-8").splitlines()
    lines[6] = lines[6].rpartition("\t")[0] + "\t3,5"
    (tmp_path / "data" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    code, _, error = invoke(
        "train", "-c", shipped, "-o", tmp_path / "out", "--data", tmp_path / "data", "--columns", "label=stars"
    )

    assert code == 2
    assert "train.tsv:7: expected the label to be a number, got str '3,5'; correct it" in error
