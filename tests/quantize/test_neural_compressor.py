"""The backend where Neural Compressor is installed, and what is said where it is not.

It forbids the newest numpy and onnx, so that half of these tests exists in each environment.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgebert import registry
from edgebert.bundle import open_bundle
from edgebert.errors import ConfigError, MissingExtraError
from edgebert.quantize import neural_compressor, quantize_bundle
from edgebert.quantize._graphs import FEWEST_OUTPUTS
from edgebert.quantize._recipe import Goal, Recipe
from edgebert.runtime.model import EdgeModel

BACKEND = {"backend": "neural_compressor"}

if importlib.util.find_spec("neural_compressor") is None:

    def test_missing_extra(plain_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(
            MissingExtraError,
            match=r"--backend neural_compressor needs .* pip install 'edgebert\[neural-compressor\]'$",
        ):
            quantize_bundle(plain_bundle, tmp_path / "made", overrides=BACKEND)

        assert not (tmp_path / "made").exists()

else:

    @pytest.mark.parametrize("method", registry.names("edgebert.methods"))
    def test_every_method(method: str, bundle_of: Callable[..., Path], texts: list[str], tmp_path: Path) -> None:
        source = open_bundle(bundle_of(method))

        made = quantize_bundle(source.path, tmp_path / "made", overrides=BACKEND)

        assert made.size_bytes < 0.8 * source.size_bytes
        assert made.manifest.quantization.backend == "neural_compressor"
        assert _alike(source.path, made.path, texts[:60]) >= 0.8
        kinds = {node.op_type for node in _graph(made.path, "graphs/layer_00.onnx").node}
        assert {"MatMulInteger", "DynamicQuantizeLinear", "Attention"} <= kinds
        assert min(_outputs_of_integer_products(made.path)) >= FEWEST_OUTPUTS

    @pytest.mark.parametrize(
        ("overrides", "operator", "least"),
        [
            ({"mode": "static"}, "QLinearMatMul", 0.8),
            ({"mode": "static", "smooth_quant": True}, "QLinearMatMul", 0.8),
            ({"precision": "int4"}, "MatMulNBits", 0.4),
        ],
    )
    def test_other_modes(
        overrides: dict[str, Any],
        operator: str,
        least: float,
        plain_bundle: Path,
        calibration: Path,
        texts: list[str],
        tmp_path: Path,
    ) -> None:
        given = calibration if "mode" in overrides else None

        made = quantize_bundle(
            plain_bundle,
            tmp_path / "made",
            overrides={**BACKEND, "calibration_texts": 40, **overrides},
            calibration=given,
        )

        assert _alike(plain_bundle, made.path, texts[:60]) >= least
        assert operator in {node.op_type for node in _graph(made.path, "graphs/layer_00.onnx").node}
        assert set(made.manifest.quantization.graphs.values()) == {made.manifest.precision}

    def test_tuning_leaves_a_bad_product_in_float_and_good_ones_in_integers(
        one_bad_product: tuple[Path, Path], texts: list[str], tmp_path: Path
    ) -> None:
        (source, data), path = one_bad_product, "graphs/layer_01.onnx"

        careless = quantize_bundle(source, tmp_path / "careless", overrides=BACKEND)
        made = quantize_bundle(source, tmp_path / "made", overrides={**BACKEND, "max_drop": 2.0}, evaluation=[data])

        assert _kinds(careless.path, path).count("MatMulInteger") == 6
        assert _alike(source, careless.path, texts) < 0.9
        (reader,) = (node.op_type for node in _graph(source, path).node if "far" in node.input)
        assert reader == "MatMul"
        assert [node.op_type for node in _graph(made.path, path).node if "far" in node.input] == ["MatMul"]
        kinds = _kinds(made.path, path)
        assert kinds.count("MatMulInteger") >= 2
        assert kinds.count("MatMulInteger") + kinds.count("MatMul") == 6
        facts = made.manifest.quantization
        assert set(facts.graphs.values()) == {"int8"}
        assert [trial.kept for trial in facts.trials] == [()]
        assert facts.trials[0].drop_points <= 2.0

    def test_a_rounding_error_is_no_loss() -> None:
        recipe, goal = Recipe(bits=8, mode="dynamic"), Goal(lambda model: 0.0, 0.01)

        settings = neural_compressor._settings(neural_compressor._library(), recipe, [], goal, symmetric=False)

        assert settings.accuracy_criterion.tolerable_loss >= 0.91 - 0.90

    def test_nothing_is_written_beside(
        plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)

        quantize_bundle(plain_bundle, tmp_path / "made", overrides={**BACKEND, "exclude": ["*layer_0[12]*", "onnx/*"]})

        assert [path.name for path in tmp_path.iterdir()] == ["made"]
        assert capsys.readouterr() == ("", "")

    def test_weight_only_in_8_bits_is_refused(plain_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has weight-only in int4 alone"):
            quantize_bundle(plain_bundle, tmp_path / "made", overrides={**BACKEND, "mode": "weight-only"})

    def _alike(first: Path, second: Path, texts: list[str]) -> float:
        scores = []
        for path in (first, second):
            with EdgeModel.from_pretrained(path, threads=1) as model:
                outcome = model.run_encoded(model.encode(texts))
                assert model.layer_rows(outcome.calls) == outcome.path.sum()
                scores.append(outcome.scores)
        return float(np.mean(scores[0].argmax(axis=1) == scores[1].argmax(axis=1)))

    def _kinds(bundle: Path, path: str) -> list[str]:
        return [node.op_type for node in _graph(bundle, path).node]

    def _graph(bundle: Path, path: str) -> onnx.GraphProto:
        return onnx.load_from_string(open_bundle(bundle).read(path)).graph

    def _outputs_of_integer_products(bundle: Path) -> list[int]:
        """Returns how many outputs each product in integers has, in all graphs."""
        opened = open_bundle(bundle)
        widths = []
        for path in (name for name in opened.manifest.files if name.endswith(".onnx")):
            graph = _graph(bundle, path)
            shapes = {constant.name: constant.dims for constant in graph.initializer}
            widths += [shapes[node.input[1]][-1] for node in graph.node if node.op_type == "MatMulInteger"]
        return widths
