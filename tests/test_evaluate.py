import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import EdgeModel, evaluate, evaluate_bundle
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import OperatingPoint, Quantization
from edgebert.data import read_examples
from edgebert.derive import derive
from edgebert.errors import ConfigError, DataError
from edgebert.evaluation_table import evaluation_csv, evaluation_table
from edgebert.measure import Measured, measure
from edgebert.output import Reporter


def test_evaluate_row_equals_own_count(dact_bundle: Path, sentiment_data: Path) -> None:
    file = sentiment_data / "test.tsv"
    examples = read_examples(file)

    row = evaluate_bundle([dact_bundle], [file])["rows"][0]

    with EdgeModel.from_pretrained(dact_bundle) as model:
        predictions = model([e.text for e in examples])
    right = [p.label == e.label for p, e in zip(predictions, examples, strict=True)]
    assert row["n"] == 40
    assert row["n_correct"] == sum(right)
    assert row["metric"] == pytest.approx(np.mean(right))
    assert row["mean_layers"] == pytest.approx(np.mean([p.layers_run for p in predictions]))
    assert row["ci_low"] <= row["metric"] <= row["ci_high"]
    assert sum(row["exit_histogram"]["right"]) == sum(right)
    assert 0 < row["flops_ratio"] < 1.1


def test_evaluate_several_files_count_together(dact_bundle: Path, sentiment_data: Path) -> None:
    files = [sentiment_data / "test.tsv", sentiment_data / "validation.tsv"]

    assert evaluate_bundle([dact_bundle], files)["rows"][0]["n"] == 80


def test_evaluate_policies_and_batch_of_one(dact_bundle: Path, sentiment_data: Path) -> None:
    policies = ("default", "confidence", "never", "fixed")

    rows = evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], policies=policies, batch_size=1)["rows"]

    assert [row["policy"] for row in rows] == list(policies)
    assert rows[2]["agreement"] == 1.0
    assert rows[3]["mean_layers"] == 3.0
    assert all(row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] for row in rows)


def test_evaluate_setting_reaches_policy(dact_bundle: Path, sentiment_data: Path) -> None:
    result = evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], policies=["fixed"], settings={"layer": 1})

    assert result["rows"][0]["mean_layers"] == 1.0


def test_evaluate_setting_goes_only_to_policies_that_have_it(
    dact_bundle: Path, plain_bundle: Path, sentiment_data: Path
) -> None:
    rows = evaluate_bundle(
        [dact_bundle, plain_bundle],
        [sentiment_data / "test.tsv"],
        policies=["halting", "confidence"],
        settings={"threshold": 0.6},
    )["rows"]

    assert [row["rule"] for row in rows] == ["halting", "confidence", "never"]
    assert "threshold" not in rows[0]["knobs"]
    assert rows[1]["knobs"]["threshold"] == 0.6


@pytest.mark.parametrize(
    ("policies", "settings", "message"),
    [
        (["halting", "confidence"], {"treshold": 0.6}, " Did you mean 'threshold'?"),
        (["default"], {"treshold": 0.6}, " Did you mean 'threshold'?"),
        (["halting"], {"slack": 0.1, "treshold": 0.6}, " Known: bound, slack."),
    ],
)
@pytest.mark.parametrize("with_static", [False, True])
def test_evaluate_unknown_setting(
    dact_bundle: Path,
    plain_bundle: Path,
    sentiment_data: Path,
    policies: list[str],
    settings: dict[str, float],
    message: str,
    with_static: bool,
) -> None:
    bundles = [plain_bundle, dact_bundle] if with_static else [dact_bundle]

    with pytest.raises(ConfigError) as raised:
        evaluate_bundle(bundles, [sentiment_data / "test.tsv"], policies=policies, settings=settings)

    assert str(raised.value) == f"unknown knob 'treshold' for these bundles and policies.{message}"


def test_evaluate_unknown_policy_is_named_before_its_knob(dact_bundle: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no bundle has a point or policy 'confidense'. Did you mean"):
        evaluate_bundle(
            [dact_bundle], [sentiment_data / "test.tsv"], policies=["confidense"], settings={"threshold": 0.6}
        )


def test_evaluate_setting_of_another_bundle(dact_bundle: Path, geep_bundle: Path, sentiment_data: Path) -> None:
    rows = evaluate_bundle([dact_bundle, geep_bundle], [sentiment_data / "test.tsv"], settings={"slack": 0.4})["rows"]

    assert rows[0]["knobs"]["slack"] == 0.4
    assert rows[1]["rule"] == "predicted_exit"


def test_evaluate_against_itself_is_no_difference(plain_bundle: Path, dact_bundle: Path, sentiment_data: Path) -> None:
    result = evaluate_bundle([plain_bundle, dact_bundle], [sentiment_data / "test.tsv"], against=[str(plain_bundle)])

    own, other = (row["against"] for row in result["rows"])
    assert (own["difference"], own["mcnemar_p"]) == (0.0, 1.0)
    expected = result["rows"][1]["metric"] - result["rows"][0]["metric"]
    assert other["difference"] == pytest.approx(expected)


def test_evaluate_against_a_bundle_as_it_is_whatever_is_set_on_top(
    dact_bundle_split: Path, dact_bundle: Path, sentiment_data: Path
) -> None:
    def against(bundles: list[Path]) -> dict[str, Any]:
        given: dict[str, Any] = {"settings": {"slack": 0.4}, "against": [str(dact_bundle)]}
        rows = evaluate_bundle(bundles, [sentiment_data / "test.tsv"], **given)["rows"]
        found: dict[str, Any] = rows[0]["against"]
        return found

    assert against([dact_bundle_split, dact_bundle]) == against([dact_bundle_split])


def test_evaluate_misspelt_policy_of_static_bundles(plain_bundle: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no bundle has a point or policy 'defalt'\. Did you mean 'default'\?$"):
        evaluate_bundle([plain_bundle], [sentiment_data / "test.tsv"], policies=["defalt"])


def test_evaluate_static_frontier(plain_bundle: Path, dact_bundle: Path, sentiment_data: Path) -> None:
    result = evaluate_bundle([dact_bundle, plain_bundle], [sentiment_data / "test.tsv"], against=["static-frontier"])

    rows = result["rows"]
    assert {row["policy"] for row in rows[2:]} == {"layers 3", "layers 1 3"}
    assert [row["mean_layers"] for row in rows[2:]] == [1.0, 2.0]
    frontier = rows[0]["frontier"]
    assert frontier["difference"] == pytest.approx(rows[0]["metric"] - frontier["metric"])
    assert "static frontier" in evaluation_table(result)


def test_evaluate_static_frontier_without_static_bundle(dact_bundle: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError, match="give the static bundles too"):
        evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], against=["static-frontier"])


def test_frontier_of_a_static_bundle_on_the_hub(
    dact_bundle: Path, plain_bundle: Path, sentiment_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.runtime.hub._download", lambda name: plain_bundle)

    result = evaluate_bundle([dact_bundle, "org/plain"], [sentiment_data / "test.tsv"], against=["static-frontier"])

    assert result["rows"][0]["frontier"]["difference"] is not None


def test_evaluate_unknown_rival(dact_bundle: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError, match="static-frontier, fixed-exits or a bundle"):
        evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], against=["nothing"])


def test_evaluate_no_examples(dact_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\n", encoding="utf-8")

    with pytest.raises(DataError):
        evaluate_bundle([dact_bundle], [tmp_path / "a.tsv"])


def test_evaluate_fixed_exits(dact_bundle: Path, plain_bundle: Path, sentiment_data: Path) -> None:
    result = evaluate_bundle([dact_bundle, plain_bundle], [sentiment_data / "test.tsv"], against=["fixed-exits"])

    rows = {row["policy"]: row for row in result["rows"] if row["bundle"] == str(dact_bundle)}
    assert [rows[f"fixed exit {layer}"]["mean_layers"] for layer in (1, 2, 3)] == [1.0, 2.0, 3.0]
    entry = rows["default"]["fixed_exits"]
    assert entry["difference"] == pytest.approx(rows["default"]["metric"] - entry["metric"])
    assert "fixed_exits" not in result["rows"][1]
    assert "its own fixed exits at equal depth" in evaluation_table(result)


def test_evaluate_counts_predictor_calls(
    dact_bundle: Path, dact_bundle_split: Path, plain_bundle: Path, sentiment_data: Path
) -> None:
    bundles = [dact_bundle, dact_bundle_split, plain_bundle]

    linked, split, static = evaluate_bundle(bundles, [sentiment_data / "test.tsv"])["rows"]

    assert linked["mean_predictor_calls"] == split["mean_predictor_calls"] == linked["mean_layers"]
    assert static["mean_predictor_calls"] == 1.0


def test_evaluate_times_every_bundle_policy_and_number_of_threads(
    plain_bundle: Path, dact_bundle: Path, sentiment_data: Path
) -> None:
    result = evaluate_bundle(
        [plain_bundle, dact_bundle],
        [sentiment_data / "test.tsv"],
        policies=["default", "never"],
        threads=[1, 2],
        timed_texts=3,
        against=["fixed-exits"],
    )

    rows = [row for row in result["rows"] if "yardstick" not in row]
    assert {(row["mean_ms"], row["texts_per_s"]) for row in result["rows"] if "yardstick" in row} == {(None, None)}
    assert [(row["bundle"], row["policy"], row["threads"]) for row in rows] == [
        (str(bundle), policy, threads)
        for threads in (1, 2)
        for bundle, policy in ((plain_bundle, "default"), (dact_bundle, "default"), (dact_bundle, "never"))
    ]
    assert [row["metric"] for row in rows[:3]] == [row["metric"] for row in rows[3:]]
    for row in rows:
        assert row["n_timed"] == 3
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["latency_quantiles_ms"][50:100:40] == pytest.approx([row["p50_ms"], row["p90_ms"]], abs=1e-4)
        assert len(row["latency_quantiles_ms"]) == 101
        assert row["texts_per_s"] > 0
        assert row["private_mb"] is None or row["private_mb"] > 0
        assert row["energy_j"] >= 0
        assert row["energy_source"] in ("rapl", "estimate")
    table = evaluation_table(result).splitlines()
    assert all(name in table[0] for name in ("threads", "p99", "texts/s", "size MB", "mJ/text"))
    parsed = list(csv.DictReader(evaluation_csv(result).splitlines()))[: len(rows)]
    assert [float(row["metric"]) for row in parsed] == pytest.approx([row["metric"] for row in rows])
    assert parsed[1]["knobs"].startswith("bound=")


@pytest.mark.parametrize(
    ("threads", "timed_texts", "message"),
    [
        ([1, 2], 0, "threads 1, 2: only times depend on them; say how many texts to time (--timed-texts 200)."),
        ([0], 0, "threads: expected 1 or more, got 0."),
        ([], 5, "threads: expected at least one whole number, got none."),
        (1, -1, "timed_texts: expected 0 or more, got -1."),
    ],
)
def test_evaluate_refuses_threads(
    plain_bundle: Path, sentiment_data: Path, threads: object, timed_texts: int, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        evaluate_bundle([plain_bundle], [sentiment_data / "test.tsv"], threads=threads, timed_texts=timed_texts)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_evaluate_compares_a_quantized_bundle_with_its_source(
    dact_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    source = open_bundle(dact_bundle)
    kept = {path: "fp32" for path in source.manifest.files if path.startswith("graphs/")}
    facts = Quantization(
        source_digest=source.manifest.graphs_digest, backend="onnxruntime", mode="dynamic", settings={}, graphs=kept
    )
    first = {"default": OperatingPoint(policy="fixed", knobs={"layer": 1})}
    same = derive(source, tmp_path / "same", changes={"quantization": facts})
    other = derive(source, tmp_path / "other", changes={"quantization": facts, "operating_points": first})

    heard = Heard()

    rows = evaluate_bundle([dact_bundle, same.path, other.path], [sentiment_data / "test.tsv"], reporter=heard)["rows"]

    assert "fp32_agreement" not in rows[0]
    assert (rows[1]["fp32_agreement"], rows[1]["decision_flips"]) == (1.0, 0.0)
    assert "fp32_agreement" not in rows[2]
    assert heard.lines == [
        f"{other.path}: its default is another setting than that of {dact_bundle}: no fp32_agreement, no decision_flips"
    ]


def test_evaluate_agrees_with_its_own_full_depth_at_any_batch_size(
    dact_bundle: Path, sentiment_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def counted(model: EdgeModel, examples: object, batch_size: int, *rest: object, **more: object) -> Measured:
        sizes.append(batch_size)
        return measure(model, examples, batch_size, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "measure", counted)

    evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], batch_size=1)
    evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], policies=["default", "never"], batch_size=4)

    assert sizes == [1, 1, 4, 4]


def test_evaluate_compares_a_quantized_bundle_with_its_source_tuned_since(
    dact_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    made = _called_quantized(dact_bundle, tmp_path / "made")
    points = open_bundle(dact_bundle).manifest.operating_points
    tuned = derive(
        open_bundle(dact_bundle), tmp_path / "tuned", changes={"operating_points": {**points, "x": points["default"]}}
    )
    heard = Heard()

    rows = evaluate_bundle([tuned.path, made], [sentiment_data / "test.tsv"], reporter=heard)["rows"]

    assert rows[1]["fp32_agreement"] == 1.0
    assert heard.lines == []


def test_evaluate_says_where_a_quantized_bundle_is_of_another_source(
    dact_bundle: Path, dact_bundle_split: Path, plain_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    made = _called_quantized(dact_bundle, tmp_path / "made")
    heard, silent = Heard(), Heard()

    rows = evaluate_bundle([dact_bundle_split, made], [sentiment_data / "test.tsv"], reporter=heard)["rows"]
    evaluate_bundle([plain_bundle, made], [sentiment_data / "test.tsv"], reporter=silent)

    assert "fp32_agreement" not in rows[1]
    assert heard.lines == [
        f"{made}: was made of another bundle than {dact_bundle_split} (the graphs differ): no fp32_agreement, "
        "no decision_flips"
    ]
    assert silent.lines == []


class Heard(Reporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def _called_quantized(source: Path, target: Path) -> Path:
    """Makes a bundle that says it was quantized, with the graphs of its source."""
    facts = Quantization(
        source_digest=open_bundle(source).manifest.graphs_digest,
        backend="onnxruntime",
        mode="dynamic",
        settings={},
        graphs={},
    )
    return derive(open_bundle(source), target, changes={"quantization": facts, "precision": "int8"}).path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "2"}, "threads: expected a whole number of 1 or more, got str '2'."),
        ({"timed_texts": "2"}, "timed_texts: expected a whole number of 0 or more, got str '2'."),
        ({"maps": -1}, "maps: expected 0 or more, got -1."),
        ({"policies": 3}, "policies: expected a name or a path, or a list of them, got int 3."),
        ({"against": [3]}, "against: expected a name or a path, or a list of them, got int 3."),
        ({"data": 3}, "data: expected a name or a path, or a list of them, got int 3."),
        ({"data": []}, "data: expected at least one source of labelled texts, got none."),
        ({"columns": "text=text"}, "columns: expected a mapping such as {'text': 'sentence'}, got str 'text=text'."),
    ],
)
def test_evaluate_refuses_what_is_no_option(
    plain_bundle: Path, sentiment_data: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluate_bundle(plain_bundle, **{"data": sentiment_data / "test.tsv", **options})

    assert str(raised.value) == message


def test_evaluate_names_the_file_of_a_label_the_model_has_not(
    plain_bundle: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("text\tlabel\na film\tpositive\na film\tpositif\n")

    with pytest.raises(DataError) as raised:
        evaluate_bundle(plain_bundle, [sentiment_data / "test.tsv", bad])

    assert str(raised.value) == (
        f"{bad}: example 2: expected one of the model's labels negative, positive, got 'positif'; correct it, or train "
        "a model with it. Did you mean 'positive'?"
    )


def test_evaluate_says_how_long_texts_were_at_most(plain_bundle: Path, sentiment_data: Path) -> None:
    rows = [
        evaluate_bundle(plain_bundle, sentiment_data / "test.tsv", max_length=length)["rows"][0]["max_length"]
        for length in (99999, 16, None)
    ]

    assert rows == [48, 16, 48]


def test_evaluate_says_whose_a_knob_is(dact_bundle: Path, sentiment_data: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluate_bundle(
            dact_bundle, sentiment_data / "test.tsv", policies=["default", "never"], settings={"threshold": 0.5}
        )

    assert str(raised.value).endswith("It is one of confidence: measure under that.")


def test_evaluate_takes_one_of_each(dact_bundle: Path, sentiment_data: Path) -> None:
    data = sentiment_data / "test.tsv"

    one = evaluate_bundle(str(dact_bundle), str(data), policies="confidence", against="fixed-exits", threads=1)

    several = evaluate_bundle([dact_bundle], [data], policies=["confidence"], against=["fixed-exits"], threads=1)
    assert [(row["policy"], row["metric"]) for row in one["rows"]] == [
        (row["policy"], row["metric"]) for row in several["rows"]
    ]
    assert one["data"] == [str(data)]
