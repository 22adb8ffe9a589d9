import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openvino
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgebert.bench import SCHEMA, bench_bundles
from edgebert.bench.cold import bench_cold
from edgebert.bench_table import table
from edgebert.bundle import open_bundle
from edgebert.errors import BundleError, ConfigError, DataError, EdgeBertError, MissingExtraError
from edgebert.host import host_facts
from edgebert.output import Advance, Reporter
from edgebert.rivals import openvino_bf16, openvino_int8
from edgebert.rivals._hugging_face import open_model
from edgebert.rivals._process import SideProcess
from edgebert.rivals._protocol import Spec
from edgebert.rivals.optimum_int8 import settings_for
from edgebert.single import add_single

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

# Every bench loads each side in a process of its own, so tests share the results of a few.
ROW_FIELDS = {
    *("bundle", "rival_of", "method", "policy", "knobs", "precision", "provider", "threads", "batch", "seq_len"),
    *("scenario", "n", "mean_layers", "mean_tokens", "tokenize_ms", "load_ms", "first_ms", "mean_ms", "min_ms"),
    *("max_ms", "p50_ms", "p90_ms", "p99_ms", "texts_per_s", "repeats_ms", "turns", "pid", "latency_quantiles_ms"),
    *("private_mb", "energy_j", "energy_source", "max_length", "metric_name", "metric"),
}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _one(result: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in result["rows"] if row["bundle"] == name]
    return row


@pytest.fixture(scope="module")
def sweep(plain_bundle: Path) -> dict[str, Any]:
    return bench_bundles([plain_bundle], threads=(1, 2), batches=(1, 4), lengths=(4, 9), against="whole", repeats=2)


@pytest.fixture(scope="module")
def layers(dact_bundle: Path, plain_bundle: Path) -> dict[str, Any]:
    return bench_bundles(
        [dact_bundle],
        policy="confidence",
        settings={"threshold": 0.6},
        batches=4,
        lengths=8,
        against=plain_bundle,
        against_batch=2,
        per_layer=True,
        repeats=2,
    )


@pytest.fixture(scope="module")
def offline(dact_bundle: Path, sentiment_data: Path) -> dict[str, Any]:
    return bench_bundles(
        [dact_bundle],
        data=sentiment_data / "test.tsv",
        scenario="offline",
        batches=(8,),
        against="uncompacted",
        max_texts=20,
        repeats=2,
        per_step=True,
    )


def test_bench_result_fields(sweep: dict[str, Any]) -> None:
    assert set(sweep) == {"schema", "host", "rows", "ratios", "fits"}
    assert sweep["schema"] == SCHEMA == "edgebert.bench/1"
    assert set(sweep["host"]) == set(host_facts())
    assert all(set(row) == ROW_FIELDS for row in sweep["rows"])


def test_bench_one_row_per_combination(sweep: dict[str, Any], plain_bundle: Path) -> None:
    got = [(row["bundle"], row["threads"], row["batch"], row["seq_len"]) for row in sweep["rows"]]

    names = (str(plain_bundle), "whole")
    assert got == [(name, t, b, length) for t in (1, 2) for b in (1, 4) for length in (4, 9) for name in names]


def test_bench_row_values(sweep: dict[str, Any], plain_bundle: Path) -> None:
    row = next(row for row in sweep["rows"] if row["batch"] == 4)

    assert (row["method"], row["policy"], row["precision"], row["provider"]) == ("plain", "never", "fp32", "cpu")
    assert row["mean_layers"] == 3
    assert row["mean_tokens"] == row["seq_len"]
    assert row["tokenize_ms"] is None
    assert row["n"] % 4 == 0
    assert len(row["repeats_ms"]) == 2
    assert 0 < row["min_ms"] <= row["mean_ms"] <= row["max_ms"]
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert row["texts_per_s"] == pytest.approx(4000 / row["mean_ms"])
    assert row["rival_of"] is None


def test_bench_sides_in_own_processes(sweep: dict[str, Any]) -> None:
    pids = {(row["bundle"], row["threads"]): row["pid"] for row in sweep["rows"]}

    assert len(set(pids.values())) == 4
    assert os.getpid() not in pids.values()


def test_bench_children_are_gone(sweep: dict[str, Any]) -> None:
    assert not any(_is_alive(row["pid"]) for row in sweep["rows"])


def test_bench_sides_take_turns(sweep: dict[str, Any]) -> None:
    ours, rival = sweep["rows"][:2]

    assert (ours["turns"], rival["turns"]) == ([0, 3], [1, 2])


def test_bench_ratio_values(sweep: dict[str, Any], plain_bundle: Path) -> None:
    assert len(sweep["ratios"]) == 8
    ratio, ours, rival = sweep["ratios"][2], *sweep["rows"][4:6]
    assert (ratio["bundle"], ratio["against"]) == (str(plain_bundle), "whole")
    assert (ratio["threads"], ratio["batch"], ratio["against_batch"], ratio["seq_len"]) == (1, 4, 4, 4)
    pairs = [a / b for a, b in zip(ours["repeats_ms"], rival["repeats_ms"], strict=True)]
    assert ratio["pairs"] == pytest.approx(pairs)
    assert ratio["ratio"] == pytest.approx(sum(pairs) / 2)
    assert (ratio["ci_low"], ratio["ci_high"], ratio["winner"]) == (None, None, None)


def test_bench_ratio_interval_and_winner(plain_bundle: Path) -> None:
    result = bench_bundles([plain_bundle], lengths=(4,), against="whole", repeats=5)

    (ratio,) = result["ratios"]
    assert 0 < ratio["min"] <= ratio["ci_low"] <= ratio["ratio"] <= ratio["ci_high"] <= ratio["max"]
    assert (ratio["winner"] is None) == (ratio["ci_low"] <= 1 <= ratio["ci_high"])
    assert "(95 % " in table(result)


def test_bench_table(sweep: dict[str, Any], layers: dict[str, Any]) -> None:
    lines = table(sweep).splitlines()

    assert lines[0].startswith("| bundle | method | policy | precision | threads | batch | tokens | layers | first ms")
    assert len(lines) == 2 + 16 + 1 + 8
    assert "/ whole (1 thread, batch 1, 4 tokens): time ratio " in lines[19]
    assert "batch 4 against 2, 8 tokens" in table(layers)
    assert table(layers).splitlines()[-1].endswith("%")


def test_bench_policy_and_knobs(layers: dict[str, Any], dact_bundle: Path) -> None:
    row = _one(layers, str(dact_bundle))

    assert (row["method"], row["policy"], row["knobs"]) == ("dact_bert", "confidence", {"threshold": 0.6})
    assert 1 <= row["mean_layers"] < 3


def test_bench_rival_bundle_has_own_batch(layers: dict[str, Any], dact_bundle: Path, plain_bundle: Path) -> None:
    ours, rival, (ratio,) = _one(layers, str(dact_bundle)), _one(layers, str(plain_bundle)), layers["ratios"]

    assert (ours["batch"], rival["batch"]) == (ratio["batch"], ratio["against_batch"]) == (4, 2)
    per_text = [a / 4 / (b / 2) for a, b in zip(ours["repeats_ms"], rival["repeats_ms"], strict=True)]
    assert ratio["pairs"] == pytest.approx(per_text)


def test_bench_per_layer_fit(layers: dict[str, Any], dact_bundle: Path) -> None:
    (fit,) = layers["fits"]

    assert (fit["bundle"], fit["threads"], fit["batch"], fit["seq_len"]) == (str(dact_bundle), 1, 4, 8)
    assert fit["exit_layers"] == [1, 2, 3]
    fitted = [fit["fixed_ms"] + k * fit["layer_ms"] for k in (1, 2, 3)]
    errors = [abs(line - ms) / ms for line, ms in zip(fitted, fit["mean_ms"], strict=True)]
    assert fit["max_relative_error"] == pytest.approx(max(errors))
    assert sum(fitted) == pytest.approx(sum(fit["mean_ms"]))


def test_bench_offline(offline: dict[str, Any], dact_bundle: Path) -> None:
    ours, rival = _one(offline, str(dact_bundle)), _one(offline, "uncompacted")

    assert (ours["rival_of"], rival["rival_of"]) == (None, str(dact_bundle))
    assert ours["n"] == rival["n"] == 20
    assert (ours["scenario"], ours["seq_len"], ours["p50_ms"]) == ("offline", None, None)
    assert ours["tokenize_ms"] > 0
    assert ours["mean_layers"] < rival["mean_layers"] <= 3


def test_bench_single_stream(plain_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.tsv"
    data.write_text("sentence\na good film\na long and boring film .\ngood\n", encoding="utf-8")

    result = bench_bundles([plain_bundle], data=data, columns={"text": "sentence"}, repeats=1)

    (row,) = result["rows"]
    assert (row["n"], row["batch"], row["scenario"]) == (3, 1, "single-stream")
    assert row["mean_tokens"] == pytest.approx((5 + 8 + 3) / 3)
    assert row["texts_per_s"] == pytest.approx(1000 / row["mean_ms"])
    assert (result["ratios"], result["fits"]) == ([], [])
    assert "single-stream" in table(result)


def test_bench_against_torch_random_weights(plain_bundle: Path, sentiment_data: Path) -> None:
    result = bench_bundles(
        [plain_bundle],
        data=sentiment_data,
        scenario="offline",
        batches=(8,),
        against="torch",
        against_batch=1,
        max_texts=6,
        repeats=1,
    )

    row, (ratio,) = _one(result, "torch"), result["ratios"]
    assert (row["method"], row["policy"], row["mean_layers"], row["batch"]) == ("plain", "never", 3, 1)
    assert ratio["ratio"] > 0
    assert (ratio["ci_low"], ratio["winner"]) == (None, None)
    assert "(1 of the 5 repeats that an interval needs)" in table(result)


def test_bench_against_several(
    plain_bundle: Path, dact_bundle: Path, plain_checkpoint: Path, sentiment_data: Path
) -> None:
    rivals = ["torch", "openvino", "openvino_bf16", "whole"] if HAS_BF16 else ["torch", "openvino", "whole"]

    result = bench_bundles(
        [plain_bundle],
        data=sentiment_data / "test.tsv",
        against=[*rivals, dact_bundle],
        reference=str(plain_checkpoint),
        max_texts=12,
        max_length=8,
        repeats=1,
    )

    assert [row["bundle"] for row in result["rows"]] == [str(plain_bundle), *rivals, str(dact_bundle)]
    assert [ratio["against"] for ratio in result["ratios"]] == [*rivals, str(dact_bundle)]
    ours, *others = result["rows"]
    assert (ours["metric_name"], ours["max_length"]) == ("accuracy", 8)
    assert ours["mean_tokens"] <= 8
    # The checkpoint that the bundle was made from: every rival answers as it does.
    assert {row["metric"] for row in others[:-1] if row["precision"] == "fp32"} == {ours["metric"]}
    assert 0 <= ours["metric"] <= 1
    assert {row["bundle"] for row in result["rows"] if row["private_mb"] is None} == {*rivals} - {"whole"}
    assert "| metric |" in table(result)


@pytest.mark.long
def test_bench_bundles_of_one_shape_share_a_rival(plain_bundle: Path, dact_bundle: Path) -> None:
    result = bench_bundles([plain_bundle, dact_bundle], against=["torch", "uncompacted"], lengths=(4,), repeats=1)

    names = [str(plain_bundle), str(dact_bundle)]
    assert [row["bundle"] for row in result["rows"]] == [*names, "torch", "uncompacted", "uncompacted"]
    assert [row["rival_of"] for row in result["rows"]] == [None, None, names[0], *names]
    assert [ratio["against"] for ratio in result["ratios"]] == ["torch"] * 2 + ["uncompacted"] * 2
    assert all(row["metric"] is None for row in result["rows"])


@pytest.mark.long
def test_bench_label_order_of_the_reference(
    plain_bundle: Path, plain_checkpoint: Path, sentiment_data: Path, tmp_path: Path
) -> None:
    """A checkpoint with its labels the other way round scores the same."""
    folder = shutil.copytree(plain_checkpoint, tmp_path / "reversed")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = [config["id2label"][number] for number in ("1", "0")]
    config |= {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    heads = [name for name in weights if name.startswith("classifier")]
    save_file(
        {**weights, **{name: weights[name].flip(0).contiguous() for name in heads}},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    options: dict[str, Any] = {"data": sentiment_data / "test.tsv", "against": "torch", "max_texts": 20, "repeats": 1}

    straight = bench_bundles([plain_bundle], reference=str(plain_checkpoint), **options)
    turned = bench_bundles([plain_bundle], reference=str(folder), **options)

    assert len(heads) == 2
    assert _one(turned, "torch")["metric"] == _one(straight, "torch")["metric"] == straight["rows"][0]["metric"]


def test_bench_reference_of_other_labels(plain_bundle: Path, plain_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_checkpoint, tmp_path / "three")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    wider = {name: torch.cat([weights[name], weights[name][:1]]) for name in weights if name.startswith("classifier")}
    save_file({**weights, **wider}, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(ConfigError, match="expected the bundle's 2 labels, got 3"):
        bench_bundles([plain_bundle], lengths=(4,), against="torch", reference=str(folder))


def test_bench_reference_without_a_head(plain_bundle: Path, plain_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain_checkpoint, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(ConfigError, match=r"has no classifier\.bias, classifier\.weight, so what it answers would be"):
        open_model(
            Spec(side="torch", bundle=str(plain_bundle), reference=str(folder)), open_bundle(plain_bundle).manifest
        )


@pytest.mark.long
def test_bench_against_compiled(plain_bundle: Path, sentiment_data: Path) -> None:
    result = bench_bundles([plain_bundle], data=sentiment_data, against="torch_compile", max_texts=3, repeats=1)

    assert _one(result, "torch_compile")["mean_layers"] == 3


def test_bench_without_a_compiler(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(MissingExtraError, match=r"needs the C\+\+ compiler no-such-compiler, which is not installed"):
        bench_bundles([plain_bundle], lengths=(4,), against="torch_compile")


@pytest.mark.long
@pytest.mark.parametrize("with_texts", [False, True])
def test_bench_against_openvino_int8(
    plain_bundle: Path, plain_checkpoint: Path, sentiment_data: Path, with_texts: bool
) -> None:
    asked: dict[str, Any] = {"data": sentiment_data, "max_texts": 6} if with_texts else {"lengths": (8,)}

    result = bench_bundles([plain_bundle], against="openvino_int8", reference=str(plain_checkpoint), repeats=1, **asked)

    assert _one(result, "openvino_int8")["precision"] == "int8"


@pytest.mark.parametrize(("rival", "module"), [("openvino", "openvino"), ("openvino_int8", "nncf")])
def test_bench_without_openvino(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: str, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('not there')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    with pytest.raises(MissingExtraError, match=rf"{rival} needs {module}, .* 'edgebert\[bench-openvino\]'"):
        bench_bundles([plain_bundle], lengths=(4,), against=rival)


def test_bench_bf16_is_refused_where_there_is_none(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.Core.get_property", lambda *_: ["FP32", "INT8"])

    with pytest.raises(ConfigError, match=r"this processor has no bf16 \(OpenVINO lists FP32, INT8\)"):
        openvino_bf16.Side(Spec(side="openvino_bf16", bundle=str(plain_bundle)))


def test_bench_other_precision_than_asked_is_refused(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.rivals.openvino._precision_run", lambda _: "fp32")

    with pytest.raises(ConfigError, match="would run fp32 on this processor, not int8"):
        openvino_int8.Side(Spec(side="openvino_int8", bundle=str(plain_bundle)))


@pytest.mark.parametrize(
    ("machine", "features", "choice"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, "avx512_vnni"),
        ("x86_64", {"avx2", "avx512f"}, "avx512"),
        ("x86_64", {"avx2"}, "avx2"),
        ("AMD64", set(), "avx2"),
        ("aarch64", {"asimd"}, "arm64"),
        ("arm64", set(), "arm64"),
    ],
)
def test_optimum_settings_suit_the_processor(machine: str, features: set[str], choice: str) -> None:
    assert settings_for(machine, features) == choice


# The newest stack is tested without optimum, which it forbids; there this test does not exist.
if importlib.util.find_spec("optimum") is not None:

    @pytest.mark.parametrize(
        ("rival", "precision"), [pytest.param("optimum", "fp32", marks=pytest.mark.long), ("optimum_int8", "int8")]
    )
    def test_bench_against_optimum_reference(
        plain_bundle: Path, plain_checkpoint: Path, rival: str, precision: str
    ) -> None:
        result = bench_bundles([plain_bundle], lengths=(8,), against=rival, reference=str(plain_checkpoint), repeats=1)

        assert _one(result, rival)["mean_layers"] == 3
        assert result["ratios"][0]["ratio"] > 0
        assert _one(result, rival)["precision"] == precision


def test_bench_default_lengths_are_those_the_bundle_takes(plain_bundle: Path) -> None:
    result = bench_bundles([plain_bundle], repeats=1)

    assert [row["seq_len"] for row in result["rows"]] == [16, 32]


def test_bench_without_tokenizer(
    plain_bundle: Path, sentiment_data: Path, without_tokenizer: Callable[[Path], Path]
) -> None:
    bundle = without_tokenizer(plain_bundle)

    assert len(bench_bundles([bundle], lengths=(4,), repeats=1)["rows"]) == 1
    with pytest.raises(ConfigError, match="has no tokenizer, so texts cannot be timed"):
        bench_bundles([bundle], data=sentiment_data)


class _Listening(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("load", "lines"), [(0.1, 0), (1.5, 1), (None, 0)])
def test_bench_says_machine_is_busy(
    plain_bundle: Path, monkeypatch: pytest.MonkeyPatch, load: float | None, lines: int
) -> None:
    reporter = _Listening()
    monkeypatch.setattr("edgebert.bench.host_facts", lambda: {"load_average": load, "threads": 2})

    bench_bundles([plain_bundle], lengths=(4,), repeats=1, reporter=reporter)

    assert len(reporter.said) == lines


def test_bench_missing_extra(plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optimum.py").write_text("raise ImportError('not there')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(MissingExtraError, match=r"against optimum needs optimum, .* pip install 'edgebert\[optimum\]'"):
        bench_bundles([plain_bundle], lengths=(4,), against="optimum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "torhc"}, "--against torhc: no such bundle folder, and no such rival. Did you mean 'torch'?"),
        ({"against": "bundle"}, "no such rival"),
        ({"reference": "x"}, "name one with --against"),
        ({"reference": "x", "against": "whole", "lengths": (4,)}, "not with whole"),
        ({"max_length": 8}, "max_length: cuts texts"),
        ({"max_length": 0, "data": "x.tsv"}, "max_length: expected 1 or more, got 0."),
        ({"reference": "x", "against": "uncompacted", "lengths": (4,)}, "not with uncompacted"),
        ({"against": "whole", "against_batch": 0}, "against_batch: expected 1 or more, got 0."),
        ({"threads": (0,)}, "threads: expected 1 or more, got 0."),
        ({"repeats": "1"}, "repeats: expected a whole number of 1 or more, got str '1'."),
        ({"lengths": 0}, "lengths: expected 1 or more, got 0."),
        ({"batches": ()}, "batches: expected at least one whole number, got none."),
        ({"lengths": (65,)}, "takes at most 48 tokens, got 65."),
        ({"scenario": "ofline"}, "Did you mean 'offline'?"),
        ({"scenario": "offline"}, "say which with --data"),
        ({"per_layer": True, "lengths": (8,)}, "(plain) has no exits to stop at"),
        ({"data": "x.tsv", "batches": (2,)}, "is one text a call, got batch 2"),
        ({"data": "x.tsv", "per_layer": True}, "is fitted at fixed lengths"),
        ({"policy": "haltin", "lengths": (8,)}, "has no point or policy 'haltin'"),
    ],
)
def test_bench_wrong_options(plain_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bench_bundles([plain_bundle], **options)

    assert message in str(raised.value)


def test_bench_no_bundles() -> None:
    with pytest.raises(ConfigError, match="at least one bundle"):
        bench_bundles([])


def test_bench_missing_data(plain_bundle: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        bench_bundles([plain_bundle], data="missing.tsv")


def test_bench_whole_of_adaptive_bundle(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no onnx/model\.onnx"):
        bench_bundles([dact_bundle], lengths=(4,), against="whole")


def test_bench_against_its_single_file(dact_bundle: Path, tmp_path: Path, sentiment_data: Path) -> None:
    bundle = add_single(dact_bundle, tmp_path / "both", samples=1).path

    result = bench_bundles([bundle], data=sentiment_data, against="single", max_texts=8, repeats=1)
    batched = bench_bundles([bundle], lengths=(4,), batches=(3,), against="single", repeats=1)

    ours, theirs = result["rows"]
    assert (theirs["method"], theirs["policy"], theirs["knobs"]) == (ours["method"], ours["policy"], ours["knobs"])
    assert theirs["mean_layers"] == ours["mean_layers"] < 3
    # Each side goes over the same batches as often as its time allows, the last time not to the end.
    depths = [row["mean_layers"] for row in batched["rows"]]
    assert depths == pytest.approx([depths[0]] * 2, abs=0.1)
    assert result["ratios"][0]["ratio"] > 0


def test_bench_single_of_a_bundle_without_one(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no onnx/single\.onnx; make a bundle that has it: edgebert export"):
        bench_bundles([dact_bundle], lengths=(4,), against="single")


class _Interrupting(Reporter):
    """Interrupts after the second turn, having noted which children there were."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.turns = 0

    @contextlib.contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        def advance(steps: int, note: str) -> None:
            self.turns += steps
            if self.turns == 2:
                self.pids = [child.pid for child in psutil.Process().children()]
                raise KeyboardInterrupt

        yield advance


def test_bench_interrupted_leaves_no_child(plain_bundle: Path) -> None:
    reporter = _Interrupting()

    with pytest.raises(KeyboardInterrupt):
        bench_bundles([plain_bundle], lengths=(4,), against="whole", reporter=reporter)

    assert len(reporter.pids) >= 2
    assert not any(_is_alive(pid) for pid in reporter.pids)


def test_side_process_unknown_side(plain_bundle: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"unknown rival 'optimun'\. Did you mean 'optimum'"),
        SideProcess(Spec(side="optimun", bundle=str(plain_bundle)), label="x"),
    ):
        pass


def test_side_process_death(plain_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(EdgeBertError) as raised,
        SideProcess(Spec(side="bundle", bundle=str(plain_bundle)), label="mine") as process,
    ):
        process.time(7)

    assert str(raised.value) == "bench: the process of mine ended with code 1: IndexError: list index out of range"
    assert "Traceback" in caplog.text


def test_bench_imports_nothing_heavy() -> None:
    code = (
        "import sys, edgebert.bench; "
        "print(sorted({'torch', 'transformers', 'onnx', 'optimum', 'scipy'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_bench_per_step_says_where_the_time_goes(offline: dict[str, Any], sweep: dict[str, Any]) -> None:
    for row in offline["rows"]:
        assert set(row["steps_ms"]) == {"embed", "layer + exit", "python"}
        assert all(ms > 0 for ms in row["steps_ms"].values())
        # 20 texts in batches of at most 8, each of which goes through all layers but for the rows that stop.
        assert row["step_calls"]["embed"] == pytest.approx(3 / 20)
        assert 3 / 20 <= row["step_calls"]["layer + exit"] <= 9 / 20
        assert f"- {row['bundle']} (1 thread, batch 8, offline): embed {row['steps_ms']['embed']:.3f} ms" in table(
            offline
        )
    assert not any("steps_ms" in row for row in sweep["rows"])


def test_bench_latency_quantiles_rise_through_the_percentiles(sweep: dict[str, Any], offline: dict[str, Any]) -> None:
    for row in sweep["rows"]:
        curve = row["latency_quantiles_ms"]
        assert len(curve) == 101
        assert curve == sorted(curve)
        assert [curve[percent] for percent in (50, 90, 99)] == pytest.approx(
            [row["p50_ms"], row["p90_ms"], row["p99_ms"]], abs=1e-4
        )
    assert all(row["latency_quantiles_ms"] is None for row in offline["rows"])


@pytest.mark.long
def test_bench_a_bundle_on_another_provider_beside_a_rival(dact_bundle: Path) -> None:
    result = bench_bundles([dact_bundle], provider="openvino", against="openvino", lengths=[8], repeats=1)

    assert [(row["bundle"], row["provider"]) for row in result["rows"]] == [
        (str(dact_bundle), "openvino"),
        ("openvino", "cpu"),
    ]


def test_bench_a_single_file_holds_one_operating_point(dact_bundle: Path, tmp_path: Path) -> None:
    add_single(dact_bundle, tmp_path / "both", samples=1)

    with pytest.raises(ConfigError, match="holds the operating point default; leave --policy and --set out"):
        bench_bundles([tmp_path / "both"], against="single", policy="never", lengths=[8], repeats=1)


@pytest.mark.parametrize("bench", [bench_bundles, bench_cold])
def test_bench_takes_one_bundle(bench: Callable[[str], object]) -> None:
    with pytest.raises(BundleError, match=r"^nothing: no such bundle folder"):
        bench("nothing")


def test_bench_labels_of_another_task_are_refused_before_anything_is_timed(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.tsv").write_text("text\tlabel\ngood\tpositive\nfair\tneutral\n")
    monkeypatch.setattr("edgebert.bench.open_sides", lambda *_: pytest.fail("timed"))

    with pytest.raises(DataError, match=r"example 2: expected one of the model's labels negative, positive"):
        bench_bundles([plain_bundle], data=tmp_path / "odd.tsv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [16]}, "lengths: are those of random token ids"),
        ({"data": None, "columns": {"text": "a"}}, "columns: are those of data"),
    ],
)
def test_bench_options_that_would_do_nothing_are_refused(
    plain_bundle: Path, sentiment_data: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_bundles([plain_bundle], **{"data": sentiment_data / "test.tsv", **options})
