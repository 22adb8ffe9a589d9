"""`edgebert quantize` and what `info` and `verify` say of its bundles."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Invoke = Callable[..., tuple[int, str, str]]


def test_quantize_info_verify(invoke: Invoke, dact_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"

    code, stdout, stderr = invoke(
        "quantize", dact_bundle, out, "--target", "avx512", "--exclude", "*layer_02*", "--json"
    )

    assert code == 0
    facts = json.loads(stdout)
    assert facts["precision"] == "int8"
    assert facts["quantization"]["settings"]["exclude"] == ["*layer_02*"]
    assert f"{out}: {facts['size_mb']:.1f} MB of graphs, 0." in stderr
    assert "fp32 stay: graphs/layer_02.onnx" in stderr
    assert "they get 7" in stderr
    assert "choose thresholds and other knobs anew with edgebert tune" in stderr
    assert f"next: edgebert eval {dact_bundle} {out} --data FILE --against {dact_bundle}" in stderr

    code, stdout, _ = invoke("info", out)
    assert code == 0
    assert "quantized: dynamic by onnxruntime, for avx512, weights of 7 bits" in stdout
    assert "fp32: graphs/layer_02.onnx" in stdout

    code, stdout, _ = invoke("verify", out, "--reference", dact_bundle, "--samples", 8)
    assert code == 0
    assert "of 8 random inputs" in stdout
    assert f"answers like {dact_bundle} on " in stdout


def test_quantize_by_a_configuration(invoke: Invoke, plain_bundle: Path, calibration: Path, tmp_path: Path) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text("method: {name: plain}\nquantize: {mode: static, calibration_texts: 20}\n", encoding="utf-8")

    code, _, _ = invoke("quantize", plain_bundle, tmp_path / "made", "-c", config, "--calibration", calibration)

    assert code == 0
    code, stdout, _ = invoke("info", tmp_path / "made")
    assert "quantized: static by onnxruntime" in stdout
    assert "calibrated on 20 texts of train.tsv, 200 rows, sha256 " in stdout


def test_quantize_to_a_drop(invoke: Invoke, sensitive: tuple[Path, Path], tmp_path: Path) -> None:
    source, data = sensitive

    code, _, stderr = invoke("quantize", source, tmp_path / "made", "--eval", data, "--max-drop", 2)

    assert code == 0
    assert "2.0 allowed; measuring each graph alone" in stderr
    assert "1 graphs stay fp32: graphs/layer_01.onnx" in stderr
    code, stdout, _ = invoke("info", tmp_path / "made")
    assert "chosen by 6 measurements: " in stdout
    assert " points lost on eval.tsv, 60 rows, sha256 " in stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--mode", "static"), 2, "mode static needs texts to calibrate on: --calibration FILE"),
        (("--mode", "statik"), 2, "Invalid value for '--mode'"),
        (("--max-drop", "1"), 2, "--max-drop and --eval go together"),
        (("--backend", "onnxrt"), 2, "unknown backend 'onnxrt'."),
        (("--exclude", "*layer_9*"), 2, "--exclude *layer_9*: matches no graph"),
        (("--exclude", "*"), 2, "--exclude *: leaves no graph to quantize; exclude less."),
        (("--exclude", "graphs/*"), 2, "--exclude graphs/*: leaves no graph to quantize; exclude less."),
        (("-c", "nothing.yaml"), 2, "nothing.yaml: cannot read the file"),
        (("--eval", "nothing.tsv", "--max-drop", "1"), 2, "nothing.tsv"),
    ],
)
def test_mistakes(
    invoke: Invoke, plain_bundle: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
):
    got, stdout, stderr = invoke("quantize", plain_bundle, tmp_path / "made", *options)

    assert (got, stdout) == (code, "")
    assert message in stderr.splitlines()[-1]
    assert not (tmp_path / "made").exists()


def test_missing_onnx_names_the_extra(
    invoke: Invoke, plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    code, _, stderr = invoke("quantize", plain_bundle, tmp_path / "made")

    assert code == 5
    assert "edgebert quantize needs onnx, which is not installed: pip install 'edgebert[quantize]'" in stderr
