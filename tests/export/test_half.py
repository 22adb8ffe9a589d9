from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgebert import registry
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import STATES, OperatingPoint
from edgebert.config import ExportConfig
from edgebert.errors import QualityError
from edgebert.export import export_model
from edgebert.export.half import half_graph
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.providers import _device
from edgebert.runtime.providers._device import DeviceGraph
from edgebert.runtime.sessions import make_options, open_session
from edgebert.verify import verify_bundle

TEXTS = ["a gripping film", "two hours of boring plot , that i will not get back", "good"]
# Their random predictors and classifiers are so steep that 11 bits of a state move an answer by as much.
STEEP = ("fastbert", "geep", "tbert")
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture
def checkpoint(save_tiny_checkpoint: Callable[..., Path]) -> Callable[[str], Path]:
    def save(method: str) -> Path:
        module = registry.load("edgebert.methods", method)
        policy, knobs = module.rule(module.Config())
        return save_tiny_checkpoint({"name": method}, {"default": OperatingPoint(policy=policy, knobs=knobs)})

    return save


def _tolerance(method: str) -> float:
    return 0.5 if method in STEEP else 0.05


def _settings(method: str, opset: int = 23) -> ExportConfig:
    return ExportConfig(opset=opset, precision="fp16", tolerance=_tolerance(method))


def _kinds(values: object) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "opset"), [*((name, 23) for name in registry.names("edgebert.methods")), ("plain", 18)]
)
def test_states_have_16_bits_and_what_decides_32(
    checkpoint: Callable[[str], Path], tmp_path: Path, method: str, opset: int
) -> None:
    source = checkpoint(method)

    bundle = export_model(source, tmp_path / "fp16", settings=_settings(method, opset))

    assert bundle.manifest.precision == "fp16"
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.differing_decisions == 0
    assert bundle.manifest.parity.tolerance == _tolerance(method)
    for path in bundle.manifest.files:
        if path.startswith("graphs/"):
            _check_precision(onnx.load_model_from_string(bundle.read(path)).graph, path)


def _check_precision(graph: onnx.GraphProto, path: str) -> None:
    made = {output: node for node in graph.node for output in node.output}
    for name, kind in {**_kinds(graph.input), **_kinds(graph.output)}.items():
        assert (kind == FLOAT16) == (name.removesuffix("_out") in STATES), (path, name)
    for node in graph.node:
        if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
            maker = made[node.input[0]]
            assert maker.op_type != "Cast" or maker.attribute[0].i == FLOAT, (path, node.name)
        if node.op_type == "Attention":
            assert {a.name: a.i for a in node.attribute}["softmax_precision"] == FLOAT


def test_half_precision_answers_nearly_the_same(dact_bundle: Path, dact_checkpoint: Path, tmp_path: Path) -> None:
    full = open_bundle(dact_bundle)

    half = export_model(dact_checkpoint, tmp_path / "fp16", settings=_settings("dact_bert"))

    embed = "graphs/embed.onnx"
    assert half.manifest.files[embed].bytes < 0.75 * full.manifest.files[embed].bytes
    with EdgeModel(full) as before, EdgeModel(half) as after:
        assert np.allclose(after.predict_proba(TEXTS), before.predict_proba(TEXTS), atol=0.05)
    checked = verify_bundle(half.path, reference=str(dact_checkpoint), samples=8)
    assert checked["parity"]["tolerance"] == 0.05


def test_the_same_graph_gives_the_same_bytes(dact_bundle: Path) -> None:
    model = onnx.load_model_from_string((dact_bundle / "graphs" / "layer_00.onnx").read_bytes())
    before = model.SerializeToString(deterministic=True)

    first, second = (half_graph(model).SerializeToString(deterministic=True) for _ in range(2))

    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_half_precision_on_a_device(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = export_model(checkpoint("dact_bert"), tmp_path / "fp16", settings=ExportConfig(precision="fp16"))
    with EdgeModel(bundle) as model:
        expected = model.predict_proba(TEXTS)
        graphs = {
            path: DeviceGraph(
                open_session(bundle.read(path), path, make_options(1), _device.providers_of("cpu")), "cpu"
            )
            for path in model.graphs
        }

        assert np.array_equal(model.with_graphs(graphs).predict_proba(TEXTS), expected)


def test_a_wrong_graph_is_not_published_in_half_precision_either(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        made = half_graph(model)
        for constant in made.graph.initializer:
            if constant.data_type == FLOAT16 and len(constant.dims) == 2:
                constant.raw_data = bytes(len(constant.raw_data))
        return made

    monkeypatch.setattr("edgebert.export.half_graph", broken)

    with pytest.raises(QualityError, match="differs from torch"):
        export_model(checkpoint("plain"), tmp_path / "fp16", settings=ExportConfig(precision="fp16"))

    assert not (tmp_path / "fp16").exists()
