import base64
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebert import registry
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.errors import BundleError, ConfigError, MissingExtraError
from edgebert.export import export_model
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.providers import _device, _openvino
from edgebert.runtime.providers._device import GATHER, DeviceArray, DeviceGraph
from edgebert.runtime.sessions import make_graph, make_options, open_session, provider_name, provider_states

PROVIDERS = registry.names("edgebert.runtime.providers")
TEXTS = ["a gripping film", "two hours of boring plot , that i will not get back", "good"]
BUNDLES = ["plain_bundle", "dact_bundle"]


def test_every_provider_says_what_it_is_and_whether_it_can_be_used() -> None:
    states = provider_states()

    assert list(states) == PROVIDERS
    assert states["cpu"] is None
    assert len({registry.load("edgebert.runtime.providers", name).FULL_NAME for name in PROVIDERS}) == len(PROVIDERS)
    for name, why in states.items():
        if why is None:
            assert provider_name(name.replace("_", "-").upper()) == name
        else:
            with pytest.raises(MissingExtraError, match=f"^provider {name}: "):
                provider_name(name)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_openvino_answers_as_the_cpu_provider_does(bundle: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(bundle)
    with EdgeModel.from_pretrained(path) as model:
        expected, probabilities = model(TEXTS), model.predict_proba(TEXTS)

    with EdgeModel.from_pretrained(path, provider="openvino") as model:
        assert model.provider == "openvino"
        answers = model(TEXTS)

        assert [(a.label, a.exit_layer) for a in answers] == [(e.label, e.exit_layer) for e in expected]
        assert np.allclose(model.predict_proba(TEXTS), probabilities, atol=1e-4)


def test_openvino_bf16_computes_in_bf16_or_says_why_not(dact_bundle: Path) -> None:
    with EdgeModel.from_pretrained(dact_bundle) as model:
        expected = model.predict_proba(TEXTS)
    if not _openvino.has_bf16():
        with pytest.raises(MissingExtraError, match=r"^provider openvino_bf16: this processor does not"):
            EdgeModel.from_pretrained(dact_bundle, provider="openvino_bf16")
        return

    with EdgeModel.from_pretrained(dact_bundle, provider="openvino-bf16") as model:
        answers = model.predict_proba(TEXTS)

    assert np.allclose(answers, expected, atol=0.05)
    assert not np.array_equal(answers, expected)


def test_openvino_is_an_extra(monkeypatch: pytest.MonkeyPatch, dact_bundle: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))

    with pytest.raises(MissingExtraError, match=r"^provider openvino: .*pip install 'edgebert\[openvino\]'"):
        EdgeModel.from_pretrained(dact_bundle, provider="openvino")


def test_openvino_refuses_what_it_cannot_load() -> None:
    with pytest.raises(BundleError, match=r"^layer\.onnx: OpenVINO cannot load it: "):
        make_graph(b"not a graph", name="layer.onnx", threads=1, provider="openvino")


@pytest.mark.parametrize("provider", ["openvino", "openvino_bf16"])
def test_onnx_runtimes_options_are_not_openvinos(provider: str, dact_bundle: Path) -> None:
    if provider_states()[provider] is not None:
        provider = "openvino"
    with pytest.raises(ConfigError, match=r"^session_options: belong to ONNX Runtime"):
        EdgeModel.from_pretrained(dact_bundle, provider=provider, session_options=onnxruntime.SessionOptions())


def test_preparing_is_for_the_cpu_provider(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"^prepare: goes with the provider cpu"):
        EdgeModel.from_pretrained(dact_bundle, provider="openvino", prepare=True)
    with pytest.raises(ConfigError, match="was prepared for the provider cpu"):
        make_graph(dact_bundle / "graphs" / "layer_00.onnx", name="x", threads=1, provider="openvino")


# What a GPU does is done here on the processor: the same code, with ONNX Runtime's device `cpu`.


@pytest.mark.parametrize(("kind", "dtype"), [("tensor(float)", np.float32), ("tensor(float16)", np.float16)])
def test_the_graph_that_takes_rows_out(kind: str, dtype: type) -> None:
    data = base64.b64decode(GATHER[kind])
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Gather"]
    values = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(dtype)
    array = DeviceArray(onnxruntime.OrtValue.ortvalue_from_numpy(values), "cpu")

    taken = array[np.array([True, False, False, True, True])]

    assert isinstance(taken, DeviceArray)
    assert np.array_equal(np.asarray(taken), values[[0, 3, 4]])


def test_a_device_array_is_an_array_to_the_engine() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    array = DeviceArray(onnxruntime.OrtValue.ortvalue_from_numpy(values.copy()), "cpu")
    wanted = np.array([False, True, True, False])

    array[wanted] = np.zeros((2, 3, 2), np.float32)

    expected = values.copy()
    expected[wanted] = 0
    assert (array.shape, len(array)) == ((4, 3, 2), 4)
    assert np.array_equal(np.asarray(array), expected)
    assert np.array_equal(array[np.array([0, 1]), np.array([2, 0])], expected[[0, 1], [2, 0]])
    assert np.asarray(array, np.float64).dtype == np.float64


def _on_device(model: EdgeModel, monkeypatch: pytest.MonkeyPatch) -> EdgeModel:
    """Returns the model with every graph as on a GPU, but for the device."""
    graphs = {}
    for path in model.graphs:
        session = open_session(model.bundle.read(path), path, make_options(1), _device.providers_of("cpu"))
        graphs[path] = DeviceGraph(session, "cpu")
    return model.with_graphs(graphs)


METHODS = ("plain", "dact_bert", "dpbert", "geep", "tbert", "dynamic_tinybert")


@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_that_stay_on_the_device_change_no_answer(
    method: str, save_tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = registry.load("edgebert.methods", method)
    policy, knobs = module.rule(module.Config())
    points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
    export_model(save_tiny_checkpoint({"name": method}, points), tmp_path / "bundle")
    fetched = []
    fetch = DeviceArray.__array__
    monkeypatch.setattr(DeviceArray, "__array__", lambda *a, **k: fetched.append(1) or fetch(*a, **k))
    with EdgeModel(open_bundle(tmp_path / "bundle")) as model:
        expected, scores = model(TEXTS), model.predict_proba(TEXTS)
        on_device = _on_device(model, monkeypatch)

        answers = on_device(TEXTS)

        assert [(a.label, a.exit_layer) for a in answers] == [(e.label, e.exit_layer) for e in expected]
        assert np.allclose(on_device.predict_proba(TEXTS), scores, atol=1e-6)
        if method in ("plain", "dact_bert", "geep"):
            assert not fetched  # nothing but scores ever came back


def test_graphs_whose_outputs_nobody_reads_are_not_waited_for(dact_bundle: Path) -> None:
    bundle = open_bundle(dact_bundle)

    def waits(path: str) -> bool:
        session = open_session(bundle.read(path), path, make_options(1), _device.providers_of("cpu"))
        graph = DeviceGraph(session, "cpu")
        try:
            return graph._options.get_run_config_entry("disable_synchronize_execution_providers") != "1"
        except RuntimeError:
            return True

    assert not waits("graphs/embed.onnx")
    assert waits("graphs/layer_00.onnx")  # its exit's scores are read


def test_cuda_sessions_share_one_stream() -> None:
    assert _device.providers_of("cuda") == [("CUDAExecutionProvider", {"user_compute_stream": "1"})]
