import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.derive import derive
from edgebert.errors import BundleError, ConfigError, MissingExtraError
from edgebert.export import export_model
from edgebert.runtime import forks
from edgebert.runtime.graphs import Graph, LateGraph
from edgebert.runtime.inputs import as_input
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.sessions import make_graph, provider_name
from edgebert.verify import verify_bundle


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_provider_name_either_spelling(name: str) -> None:
    assert provider_name(name) == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [("cdua", r"unknown provider 'cdua'\. Did you mean 'cuda'\?"), ("TensorrtExecutionProvider", "unknown provider")],
)
def test_provider_name_unknown(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        provider_name(name)


@pytest.mark.parametrize("name", ["cuda", "CUDAExecutionProvider"])
def test_provider_name_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(MissingExtraError, match=f"^provider {name}: .* install onnxruntime-gpu in its place"):
        provider_name(name)


def test_make_graph_runs(plain_bundle: Path) -> None:
    graph = make_graph((plain_bundle / "graphs" / "layer_02.onnx").read_bytes(), name="x", threads=1)

    hidden = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    outputs = graph.run({"hidden": hidden, "attention_mask": np.ones((2, 5), np.int64)}, ("a", "b"))

    assert list(graph.inputs) == ["hidden", "attention_mask"]
    assert list(graph.outputs) == ["hidden_out", "logits"]
    assert {name: value.shape for name, value in outputs.items()} == {"a": (2, 5, 32), "b": (2, 2)}


def test_make_graph_refuses_another_file() -> None:
    with pytest.raises(BundleError, match=r"^layer\.onnx: ONNX Runtime cannot load it: "):
        make_graph(b"not a graph", name="layer.onnx", threads=1)


def test_sessions_of_different_thread_counts_and_of_others_live_together(plain_bundle: Path) -> None:
    # In a process of its own, since what the first session sets up stays for the whole process.
    code = """
import sys
import onnxruntime
from edgebert import EdgeModel
path = sys.argv[1]
first = EdgeModel.from_pretrained(path, threads=1)
second = EdgeModel.from_pretrained(path, threads=2)
own = EdgeModel.from_pretrained(path, session_options=onnxruntime.SessionOptions())
onnxruntime.InferenceSession(path + "/onnx/model.onnx", providers=["CPUExecutionProvider"])
print(len({model("a good film").label for model in (first, second, own)}))
"""

    result = subprocess.run(
        [sys.executable, "-c", code, str(plain_bundle)], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_sessions_after_somebody_elses_first_session(plain_bundle: Path) -> None:
    code = """
import sys
import onnxruntime
from edgebert import EdgeModel
onnxruntime.InferenceSession(sys.argv[1] + "/onnx/model.onnx", providers=["CPUExecutionProvider"])
print([EdgeModel.from_pretrained(sys.argv[1], threads=n)("a good film").exit_layer for n in (1, 2)])
"""

    result = subprocess.run(
        [sys.executable, "-c", code, str(plain_bundle)], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "[3, 3]\n", "")


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.uint8, np.uint64, np.int64])
def test_as_input_is_int64_in_one_piece(dtype: type) -> None:
    array = as_input("input_ids", np.ones((3, 4), dtype)[:, ::2])

    assert array.dtype == np.int64
    assert array.flags.c_contiguous
    assert array.tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(("threads", "marked"), [(1, 0), (2, 1)])
def test_a_session_with_threads_is_marked_for_forks_as_long_as_its_graph_is_there(
    plain_bundle: Path, threads: int, marked: int
) -> None:
    model = (plain_bundle / "graphs" / "layer_02.onnx").read_bytes()
    gc.collect()
    before = len(forks._watch().pools)

    graph = make_graph(model, name="x", threads=threads)
    gc.collect()
    while_there = len(forks._watch().pools)
    del graph
    gc.collect()

    assert while_there == before + marked
    assert len(forks._watch().pools) == before


def test_a_late_graph_loads_once_when_it_is_first_run(plain_bundle: Path) -> None:
    loads = []

    def load() -> Graph:
        loads.append(1)
        return make_graph((plain_bundle / "graphs" / "layer_02.onnx").read_bytes(), name="x", threads=1)

    graph = LateGraph(load)
    hidden = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    values = {"hidden": hidden, "attention_mask": np.ones((2, 5), np.int64)}
    assert graph.loaded is None

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: graph.run(values, ("a", "b"))["b"], range(8)))

    assert graph.loaded is not None
    assert len(loads) == 1
    assert all(np.array_equal(made[0], other) for other in made)


def test_layers_in_two_forms_load_the_one_that_is_needed(
    save_tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    points = {"default": OperatingPoint(policy="width", knobs={"width": 1.0})}
    export_model(save_tiny_checkpoint({"name": "tbert"}, points), tmp_path / "bundle")

    def loaded(model: EdgeModel) -> set[str]:
        return {
            path for path, graph in model.graphs.items() if isinstance(graph, LateGraph) and graph.loaded is not None
        }

    with EdgeModel.from_pretrained(tmp_path / "bundle") as model:
        late = {path for path, graph in model.graphs.items() if isinstance(graph, LateGraph)}
        assert len(late) == 3 * model.manifest.encoder.layers
        assert loaded(model) == set()
        model(["a gripping film"])
        whole = {path for path in late if "layer_" in path}
        assert loaded(model) == whole
        model.set_policy("width", width=0.5)
        model(["a gripping film"])
        assert loaded(model) == late
    assert verify_bundle(tmp_path / "bundle")["graphs"] == sum(
        name.startswith("graphs/") for name in model.manifest.files
    )
    with pytest.raises(BundleError, match=r"attention_00\.onnx: not an ONNX graph"):
        derive(open_bundle(tmp_path / "bundle"), tmp_path / "broken", graphs={sorted(late - whole)[0]: b"no graph"})
    damaged = tmp_path / "bundle" / sorted(whole)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"layer_00\.onnx: expected"):
        EdgeModel.from_pretrained(tmp_path / "bundle")


def test_a_session_does_not_keep_the_bytes_it_was_made_of(plain_bundle: Path) -> None:
    data = (plain_bundle / "graphs" / "layer_02.onnx").read_bytes()
    before = sys.getrefcount(data)

    graph = make_graph(data, name="x", threads=1)

    assert sys.getrefcount(data) == before
    assert graph.inputs
