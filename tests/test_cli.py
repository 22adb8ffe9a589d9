import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgebert import cli, evaluate
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.derive import derive
from edgebert.errors import BundleError
from edgebert.quantize import of_other_precision
from edgebert.runtime.graphs import Graph
from edgebert.runtime.sessions import make_graph

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path, tiny_hf_folder: Path, sentiment_data: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"method: {{name: dact_bert, trunk: 16}}\n"
        f"train: {{model: '{tiny_hf_folder}', data: '{sentiment_data}', max_length: 48, batch_size: 16, "
        "stage_epochs: [1.0, 1.0], tuning_rows: 40, precision: fp32}\n"
        "export: {verify_samples: 8}\n",
        encoding="utf-8",
    )
    return path


def test_help_lists_commands(invoke: Invoke) -> None:
    code, out, _ = invoke("-h")

    assert code == 0
    assert all(
        name in out for name in ("demo", "train", "export", "sign", "verify", "info", "run", "eval", "tune", "bench")
    )


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_help_of_command(invoke: Invoke, command: str) -> None:
    code, out, _ = invoke(command, "--help")

    assert code == 0
    assert out.startswith("Usage:")


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_option_has_the_environment_variable_of_its_flag(command: str) -> None:
    for option in cli.cli.commands[command].params:
        flags = [flag for flag in option.opts if flag.startswith("--")]
        expected = f"EDGEBERT_{command}_{flags[0][2:]}".replace("-", "_").upper() if flags else None
        assert option.envvar == expected


def test_no_arguments_shows_help(invoke: Invoke) -> None:
    code, out, _ = invoke()

    assert code == 0
    assert out.startswith("Usage:")


@pytest.mark.parametrize("command", [("train", "-c", "x", "-o", "y"), ("export", "x", "y"), ("demo",)])
def test_missing_torch_names_the_extra(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, config: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    code, _, err = invoke(*[config if part == "x" else part for part in command])

    assert code == 5
    assert "needs torch, which is not installed: pip install 'edgebert[" in err


def test_run_texts_and_file_together(invoke: Invoke, dact_bundle: Path) -> None:
    code, _, err = invoke("run", dact_bundle, "x", "-i", "-")

    assert code == 2
    assert "not both" in err


def test_environment_variable_sets_option(invoke: Invoke, dact_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBERT_RUN_POLICY", "fixed")

    _, out, _ = invoke("run", dact_bundle, "good movie", "--format", "jsonl")

    assert json.loads(out)["layers_run"] == 3


def test_whole_road(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Path, sentiment_data: Path
) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    monkeypatch.chdir(tmp_path)

    code, out, err = invoke("train", "-c", config, "-o", checkpoint, "--seed", 1, "--max-steps", 4)
    assert (code, out) == (0, "")
    assert f"next: edgebert export {checkpoint}" in err

    code, out, err = invoke("export", checkpoint, "bundle")
    assert (code, out) == (0, "")
    assert "verified on 8 inputs" in err
    assert "next: edgebert run bundle " in err  # as it was typed

    code, out, err = invoke("verify", bundle, "--reference", checkpoint, "--samples", 8, "--json")
    assert code == 0
    assert json.loads(out)["parity"]["differing_decisions"] == 0

    code, out, err = invoke("eval", bundle, "--data", sentiment_data / "test.tsv", "--json", "--policy", "confidence")
    assert code == 0
    assert json.loads(out)["rows"][0]["n"] == 40


def test_train_unknown_method(invoke: Invoke, tmp_path: Path, config: Path) -> None:
    code, out, err = invoke("train", "-c", config, "-o", tmp_path / "out", "--set", "method.name=dact")

    assert (code, out) == (2, "")
    assert "unknown method 'dact'. Did you mean 'dact_bert'?" in err


def test_train_unknown_key(invoke: Invoke, tmp_path: Path, config: Path) -> None:
    code, _, err = invoke("train", "-c", config, "-o", tmp_path / "out", "--set", "train.batchsize=3")

    assert code == 2
    assert "unknown key 'train.batchsize'. Did you mean 'batch_size'?" in err


def test_train_unknown_method_key(invoke: Invoke, tmp_path: Path, config: Path) -> None:
    code, _, err = invoke("train", "-c", config, "-o", tmp_path / "out", "--set", "method.taus=3")

    assert code == 2
    assert "method.taus" in err
    assert "'tau'" in err


def test_train_missing_data(invoke: Invoke, tmp_path: Path, config: Path) -> None:
    code, _, err = invoke("train", "-c", config, "-o", tmp_path / "out", "--data", "./nowhere")

    assert code == 2
    assert "nowhere" in err


def test_train_malformed_row(invoke: Invoke, tmp_path: Path, config: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\ngood\tpositive\nbad\n", encoding="utf-8")

    code, _, err = invoke("train", "-c", config, "-o", tmp_path / "out", "--data", tmp_path)

    assert code == 2
    assert f"{tmp_path / 'train.tsv'}:3:" in err


def test_unknown_command(invoke: Invoke) -> None:
    code, _, err = invoke("trian")

    assert code == 2
    assert "unknown command 'trian'. Did you mean 'train'?" in err


def test_unknown_option(invoke: Invoke, dact_bundle: Path) -> None:
    code, _, err = invoke("run", dact_bundle, "x", "--polcy", "never")

    assert code == 2
    assert "--policy" in err


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_run_formats(invoke: Invoke, dact_bundle: Path, form: str) -> None:
    code, out, _ = invoke("run", dact_bundle, "a good, funny movie", "awful", "--format", form, "--trace")

    assert code == 0
    assert "cost_ratio" in out
    assert "a good, funny movie" in out


def test_run_json_prints_one_object(invoke: Invoke, dact_bundle: Path) -> None:
    _, out, _ = invoke("run", dact_bundle, "good", "bad", "--json", "--top-k", 2)

    rows = json.loads(out)["rows"]
    assert [row["text"] for row in rows] == ["good", "bad"]
    assert len(rows[0]["top"]) == 2


def test_run_pair_and_empty_text(invoke: Invoke, dact_bundle: Path) -> None:
    code, out, _ = invoke("run", dact_bundle, "", "--pair", "good", "bad", "--format", "jsonl")

    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["", "good / bad"]


def test_run_long_text_says_truncated(invoke: Invoke, dact_bundle: Path) -> None:
    code, out, err = invoke("run", dact_bundle, "good movie " * 60, "--format", "jsonl", "--trace")

    assert code == 0
    assert json.loads(out)["truncated"] is True
    assert "1 text was cut: the model takes 48 tokens" in err


def test_run_stdin(dact_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgebert.cli", "run", dact_bundle, "-i", "-", "--format", "jsonl"],
        input="good\n\nbad movie\n",
        capture_output=True,
        text=True,
        check=True,
    )

    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["good", "", "bad movie"]


def test_run_file(invoke: Invoke, dact_bundle: Path, sentiment_data: Path) -> None:
    code, out, _ = invoke("run", dact_bundle, "-i", sentiment_data / "test.tsv", "--format", "jsonl")

    assert code == 0
    assert len(out.splitlines()) == 40


def test_run_without_text(invoke: Invoke, dact_bundle: Path) -> None:
    code, _, err = invoke("run", dact_bundle)

    assert code == 2
    assert "no text" in err


def test_run_unknown_knob(invoke: Invoke, dact_bundle: Path) -> None:
    code, _, err = invoke("run", dact_bundle, "x", "--set", "treshold=0.5")

    assert code == 2
    assert "Did you mean 'threshold'?" in err


def test_run_missing_bundle(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("run", tmp_path / "nothing", "x")

    assert code == 3
    assert "no such bundle folder" in err


@pytest.mark.parametrize("name", ["edgebert.json", "graphs/layer_01.onnx", "tokenizer.json"])
def test_run_flipped_byte(invoke: Invoke, dact_bundle: Path, tmp_path: Path, name: str) -> None:
    from edgebert import EdgeModel

    with EdgeModel.from_pretrained(dact_bundle) as model:
        copy = model.save_pretrained(tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)

    code, out, err = invoke("run", copy, "x")

    assert (code, out) == (3, "")
    assert name in err
    with pytest.raises(BundleError):
        open_bundle(copy).check_files()


def test_info_shows_knobs(invoke: Invoke, dact_bundle: Path) -> None:
    code, out, _ = invoke("info", dact_bundle)

    assert code == 0
    assert "  confidence: threshold=0.75 (lower is cheaper)\n  fixed: layer=... (lower is cheaper)\n  never\n" in out
    assert "  halting: slack=0.0 (higher is cheaper), bound=paper\n" in out
    assert "graphs/layer_00.onnx" in out


def test_info_json(invoke: Invoke, dact_bundle: Path) -> None:
    _, out, _ = invoke("info", dact_bundle, "--json")

    facts = json.loads(out)
    assert facts["method"] == "dact_bert"
    assert facts["knobs"]["halting"]["slack"] == {"value": 0.0, "cheaper": "higher"}
    assert facts["knobs"]["halting"]["bound"] == {"value": "paper", "cheaper": None}


def test_info_says_what_points_were_chosen_on(invoke: Invoke, dact_bundle: Path, tmp_path: Path) -> None:
    chosen = OperatingPoint(policy="confidence", knobs={"threshold": 0.9}, chosen_on="train, 40 rows", metric=0.87)
    source = open_bundle(dact_bundle)
    points = {**source.manifest.operating_points, "chosen": chosen}
    moved = {**points, "chosen": of_other_precision(chosen, "fp32")}
    derive(source, tmp_path / "fp32", changes={"operating_points": points})
    derive(source, tmp_path / "moved", changes={"operating_points": moved})

    _, out, _ = invoke("info", tmp_path / "fp32")
    _, other, _ = invoke("info", tmp_path / "moved")

    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert cells[0] == ["operating point", "policy", "knobs", "accuracy", "layers", "cost", "chosen on"]
    assert ["chosen", "confidence", "threshold=0.9", "0.8700", "-", "-", "train, 40 rows"] in cells
    assert [row[-1] for row in cells if row[0] == "default"] == ["-"]
    assert "| train, 40 rows, in fp32 |" in other


def test_eval_min_metric(invoke: Invoke, dact_bundle: Path, sentiment_data: Path) -> None:
    code, out, err = invoke("eval", dact_bundle, "--data", sentiment_data / "test.tsv", "--min-metric", 1)

    assert code == 4
    assert "| bundle" in out
    assert "expected a metric of at least 1.0" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (("eval", "b", "--data", "d", "--min-metric"), "nan"),
        (("eval", "b", "--data", "d", "--min-metric"), "99"),
        (("verify", "b", "--tolerance"), "nan"),
        (("verify", "b", "--tolerance"), "-1"),
        (("export", "c", "b", "--tolerance"), "inf"),
        (("quantize", "b", "q", "--max-drop"), "nan"),
        (("run", "b", "text", "--memory-budget-mb"), "nan"),
    ],
)
def test_number_out_of_range(invoke: Invoke, option: tuple[str, ...], value: str) -> None:
    code, _, err = invoke(*option, value)

    assert code == 2
    assert f"Invalid value for '{option[-1]}': " in err
    assert value in err
    assert len(err.splitlines()) == 1


def test_eval_min_metric_without_a_metric(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, dact_bundle: Path, sentiment_data: Path
) -> None:
    result = evaluate.evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], threads=1)
    result["rows"][0]["metric"] = float("nan")
    monkeypatch.setattr(evaluate, "evaluate_bundle", lambda *_, **__: result)

    code, _, err = invoke("eval", dact_bundle, "--data", "test.tsv", "--min-metric", 0)

    assert code == 4
    assert "expected a metric of at least 0.0, got nan" in err


def test_eval_label_of_another_task(invoke: Invoke, dact_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\ngood\tsports\n", encoding="utf-8")

    code, _, err = invoke("eval", dact_bundle, "--data", tmp_path / "a.tsv")

    assert code == 2
    assert "sports" in err
    assert "negative" in err


def test_export_existing_needs_force(invoke: Invoke, dact_checkpoint: Path, dact_bundle: Path) -> None:
    before = (dact_bundle / "edgebert.json").read_bytes()

    code, _, err = invoke("export", dact_checkpoint, dact_bundle)

    assert code == 1
    assert "--force" in err
    assert (dact_bundle / "edgebert.json").read_bytes() == before


def test_export_tolerance_missed(invoke: Invoke, dact_checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = invoke("export", dact_checkpoint, tmp_path / "b", "--tolerance", "1e-12", "--verify-samples", 8)

    assert code == 4
    assert "differs from torch" in err
    assert list(tmp_path.iterdir()) == []


def test_export_missing_checkpoint(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("export", tmp_path / "nothing", tmp_path / "b")

    assert code == 2
    assert "no such checkpoint folder" in err


def test_interrupt_exits_130(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, dact_bundle: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgebert.describe.describe_bundle", interrupt)

    code, _, err = invoke("info", dact_bundle)

    assert code == 130
    assert "interrupted" in err


def test_unforeseen_error_is_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, dact_bundle: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("edgebert.describe.describe_bundle", fail)

    code, _, err = invoke("info", dact_bundle)

    assert code == 1
    assert err == "error: ZeroDivisionError: a b (a bug: set EDGEBERT_DEBUG=1 for the traceback)\n"


def test_commands_are_documented() -> None:
    assert all(isinstance(command, click.Command) and command.help for command in cli.cli.commands.values())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['edgebert', '--help']\nfrom edgebert import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_report_draws_results(invoke: Invoke, tmp_path: Path) -> None:
    row = {
        "bundle": "a",
        "method": "fastbert",
        "policy": "default",
        "rule": "entropy",
        "precision": "fp32",
        "threads": 1,
        "mean_layers": 2.0,
        "n": 4,
        "metric_name": "accuracy",
        "metric": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "layers": 3,
        "flops_ratio": 0.5,
        "gmacs": 0.5,
        "size_mb": 90.0,
        "mean_ms": 4.0,
        "texts_per_s": 250.0,
        "knobs": {},
        "exit_histogram": {"right": [1, 1], "wrong": [1, 1]},
    }
    host = {"cpu": "a processor", "threads": 2, "os": "Linux", "python": "3.11"}
    result, target, charts = tmp_path / "result.json", tmp_path / "report.html", tmp_path / "charts"
    result.write_text(
        json.dumps({"schema": "edgebert.eval/1", "host": host, "data": ["x.tsv"], "rows": [row]}), encoding="utf-8"
    )

    code, out, err = invoke("report", result, "-o", target, "--svg", charts)

    assert (code, out) == (0, "")
    assert f"{target}: 3 charts, " in err
    assert sorted(path.name for path in charts.iterdir()) == ["exits.svg", "memory.svg", "pareto.svg"]
    assert invoke("report", result, "-o", target)[0] == 1
    assert invoke("report", result, "-o", target, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none.json", "-o", "report.html"), 2, "none.json: cannot read the file"),
        (("bad.json", "-o", "report.html"), 2, "bad.json: not JSON"),
        (("other.json", "-o", "report.html"), 2, "other.json: expected a result of edgebert eval --json"),
        (("other.json",), 2, "Missing option '-o' / '--output'"),
        (("-o", "report.html"), 2, "Missing argument 'RESULTS...'"),
        (("other.json", "-o", "none/report.html"), 1, "does not exist"),
    ],
)
def test_report_mistake_is_one_line(
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    got, _, err = invoke("report", *arguments)

    assert got == code
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_prepare_then_run(
    invoke: Invoke, dact_bundle: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before, _ = invoke("run", dact_bundle, "a gripping film", "--json")
    code, out, err = invoke("prepare", dact_bundle)
    was_prepared: list[bool] = []

    def watched(model: bytes | Path, **options: Any) -> Graph:
        was_prepared.append(isinstance(model, Path))
        return make_graph(model, **options)

    monkeypatch.setattr("edgebert.runtime.loading.make_graph", watched)

    assert code == 0
    assert f"prepared in {empty_cache}" in out
    assert f"next: edgebert run {dact_bundle} TEXT" in err
    assert invoke("run", dact_bundle, "a gripping film", "--json")[1] == before
    assert was_prepared
    assert all(was_prepared)
    assert f"prepared: {empty_cache}" in invoke("info", dact_bundle)[1]


def test_prepare_json_and_check(invoke: Invoke, dact_bundle: Path, empty_cache: Path) -> None:
    code, out, err = invoke("prepare", dact_bundle, "--check")
    assert (code, out) == (3, "")
    assert "nothing prepared, or changed; run: edgebert prepare" in err

    _, out, _ = invoke("prepare", dact_bundle, "--json")
    facts = json.loads(out)
    assert facts["schema"] == "edgebert.prepare/1"
    assert Path(facts["folder"]).parent.parent == empty_cache
    assert facts["size_mb"] > 0

    code, out, _ = invoke("prepare", dact_bundle, "--check")
    assert code == 0
    assert "graphs are as they were prepared in" in out


def test_prepare_wrong_options(invoke: Invoke, dact_bundle: Path) -> None:
    code, _, err = invoke("prepare", dact_bundle, "--check", "--force")

    assert code == 2
    assert "--check, --force and --remove" in err


def test_prepare_remove(invoke: Invoke, dact_bundle: Path, empty_cache: Path) -> None:
    assert invoke("prepare", dact_bundle, "--remove")[1] == f"{dact_bundle}: nothing was prepared\n"
    invoke("prepare", dact_bundle)

    assert invoke("prepare", dact_bundle, "--remove")[1] == f"{dact_bundle}: removed\n"
    assert not list((empty_cache / "prepared").iterdir())


def test_run_prepares_when_asked_and_keeps_a_budget(invoke: Invoke, dact_bundle: Path, empty_cache: Path) -> None:
    code, _, err = invoke("run", dact_bundle, "good", "--prepare", "--memory-budget-mb", 5)

    assert code == 0
    assert any(empty_cache.rglob("*.bin"))
    assert "note: graphs held " in err
    assert " MB at most, and were loaded " in err


def test_run_with_too_small_a_budget(invoke: Invoke, dact_bundle: Path, empty_cache: Path) -> None:
    code, out, err = invoke("run", dact_bundle, "good", "--memory-budget-mb", 0.01)

    assert (code, out) == (2, "")
    assert err.startswith("error: memory_budget_mb: ")
    assert "edgebert prepare" in err


def test_info_of_this_machine(invoke: Invoke, empty_cache: Path) -> None:
    code, out, _ = invoke("info")
    assert code == 0
    assert "| cpu " in out
    assert f"prepared graphs: {empty_cache}" in out

    facts = json.loads(invoke("info", "--json")[1])
    assert facts["providers"]["cpu"] is None
    assert set(facts["providers"]) >= {"cpu", "cuda", "openvino", "openvino_bf16"}


def test_run_with_a_provider(invoke: Invoke, dact_bundle: Path) -> None:
    expected = json.loads(invoke("run", dact_bundle, "a gripping film", "--json")[1])["rows"][0]["label"]

    code, out, _ = invoke("run", dact_bundle, "a gripping film", "--provider", "openvino", "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["label"] == expected

    code, _, err = invoke("run", dact_bundle, "good", "--provider", "openvin")
    assert code == 2
    assert "unknown provider 'openvin'. Did you mean 'openvino'?" in err


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ("export", "checkpoint", "checkpoint", "--force"),
        ("export", "checkpoint", "checkpoint", "--layout", "both", "--force"),
        ("quantize", "bundle", "bundle", "--force"),
        ("report", "result.json", "-o", "result.json", "--force"),
        ("train", "-c", "config.yaml", "--model", "checkpoint", "-o", "checkpoint", "--force"),
        ("convert", "checkpoint/model.safetensors", "checkpoint", "--force"),
        ("quantize", "bundle", "bundle/int8"),
        ("export", "bundle", "bundle/single.onnx", "--layout", "single"),
        ("export", "checkpoint", "bundle/new"),
        ("tune", "bundle", "--data", "test.tsv", "-o", "bundle/tuned"),
        ("train", "-c", "config.yaml", "-o", "bundle/new"),
    ],
)
def test_output_never_destroys_an_input(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dact_bundle: Path,
    dact_checkpoint: Path,
    sentiment_data: Path,
    config: Path,
    command: tuple[str, ...],
) -> None:
    shutil.copytree(dact_bundle, tmp_path / "bundle")
    shutil.copytree(dact_checkpoint, tmp_path / "checkpoint")
    shutil.copy(config, tmp_path / "config.yaml")
    shutil.copy(sentiment_data / "test.tsv", tmp_path)
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = _files(tmp_path)

    code, _, err = invoke(*command)

    assert code == 2
    assert len(err.splitlines()) == 1
    assert "which writing there would destroy" in err or "is inside the bundle" in err
    assert _files(tmp_path) == before


def test_train_force_does_not_replace_a_bundle(invoke: Invoke, tmp_path: Path, dact_bundle: Path, config: Path) -> None:
    bundle = shutil.copytree(dact_bundle, tmp_path / "bundle")

    code, _, err = invoke("train", "-c", config, "-o", bundle, "--force")

    assert code == 1
    assert "is a bundle, so --force does not replace it by a checkpoint" in err
    assert open_bundle(bundle).check_files() == []
