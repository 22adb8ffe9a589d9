"""Single products in every mode against numpy, and against ONNX Runtime's own quantizer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgebert.quantize._graphs import find_products, find_tables, graph_bytes
from edgebert.quantize._inspect import check_graph
from edgebert.quantize._recipe import Calibration, Range, Recipe
from edgebert.quantize._tables import quantize_tables
from edgebert.quantize.onnxruntime import pack_blocks, quantize_graph
from edgebert.runtime.sessions import make_graph

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(40, 32)).astype(np.float32)
BIAS = RNG.normal(size=32).astype(np.float32)
X = RNG.normal(size=(3, 5, 40)).astype(np.float32)
SEEN = Calibration(rows=3, ranges={"x": Range(float(X.min()), float(X.max()))})


def product(kind: str = "MatMul") -> onnx.ModelProto:
    """A product with a matrix of 40 x 32 and a bias; that of a Gemm is turned, and its input flat."""
    if kind == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
        shapes = [["rows", "tokens", 40], ["rows", "tokens", 32]]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=1), helper.make_node("Relu", ["g"], ["y"])]
        shapes = [["rows", 40], ["rows", 32]]
    weight = WEIGHT if kind == "MatMul" else np.ascontiguousarray(WEIGHT.T)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", shapes, strict=True)
    ]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return make_graph(graph_bytes(model), name="graph", threads=1).run({"x": x}, ("y",))["y"]


def recipe(mode: str, **changes: object) -> Recipe:
    return Recipe(**{"bits": 8, "mode": mode, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
@pytest.mark.parametrize("mode", ["dynamic", "static", "weight-only"])
def test_a_product_in_8_bits(mode: str, kind: str, per_channel: bool) -> None:
    x = X if kind == "MatMul" else X[:, 0]
    model = product(kind)

    made = quantize_graph(model, recipe(mode, per_channel=per_channel), SEEN, None)

    assert made is not None
    check_graph(made, graph_bytes(made), name="graph")
    expected, got = run(model, x), run(made, x)
    assert 0 < np.abs(got - expected).max() <= 0.03 * np.abs(expected).max()
    assert run(made, x[:0]).shape == expected[:0].shape
    assert [tensor.data_type for tensor in made.graph.initializer].count(TensorProto.FLOAT) <= 3
    assert model == product(kind)


def test_dynamic_equals_the_quantizer_of_onnxruntime(tmp_path: Path) -> None:
    onnx.save(product(), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)

    made = quantize_graph(product(), recipe("dynamic"), None, None)

    assert made is not None
    assert np.abs(run(made, X) - run(onnx.load(tmp_path / "int8.onnx"), X)).max() <= 1e-4


def test_per_channel_is_closer() -> None:
    uneven = product()
    uneven.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT * np.geomspace(0.01, 1, 32, dtype="f"), "w"))
    expected = run(uneven, X)

    errors = []
    for per_channel in (True, False):
        made = quantize_graph(uneven, recipe("dynamic", per_channel=per_channel), None, None)
        assert made is not None
        errors.append((np.abs(run(made, X) - expected) / np.abs(expected).mean(axis=(0, 1))).mean())

    assert 2 * errors[0] < errors[1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [16, 32])
def test_blocks_hold_what_the_operator_reads(bits: int, size: int) -> None:
    """40 inputs fill two and a half blocks of 16, or one and a quarter of 32."""
    values, scale, zero = pack_blocks(WEIGHT, bits, size)
    blocks = -(-40 // size)
    flat = values.reshape(32, -1)
    unpacked = np.stack([flat & 15, flat >> 4], axis=-1) if bits == 4 else flat
    numbers = unpacked.reshape(32, blocks, size).astype(np.float32)
    zeros = np.full((32, blocks), 128.0)
    if zero is not None:
        zeros = np.stack([zero & 15, zero >> 4], axis=-1).reshape(32, -1)[:, :blocks].astype(np.float64)
    worth = ((numbers - zeros[:, :, None]) * scale[:, :, None]).reshape(32, -1)[:, :40].T

    made = quantize_graph(product(), recipe("weight-only", bits=bits, block_size=size), None, None)

    assert np.abs(worth - WEIGHT).max() <= 0.51 * scale.max()
    assert made is not None
    expected = X @ worth + BIAS
    assert np.abs(run(made, X) - expected).max() <= 0.02 * np.abs(expected).max()


def test_one_matrix_used_twice_is_stored_once() -> None:
    model = product()
    model.graph.node.append(helper.make_node("MatMul", ["y2", "w"], ["z"]))
    model.graph.node.insert(2, helper.make_node("Concat", ["y", "y"], ["y1"], axis=2))
    model.graph.node.insert(3, helper.make_node("Slice", ["y1", "from", "to", "axes"], ["y2"]))
    for name, value in (("from", 0), ("to", 40), ("axes", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", "tokens", 32]))

    made = quantize_graph(model, recipe("dynamic"), None, None)

    assert made is not None
    kinds = [tensor.data_type for tensor in made.graph.initializer if len(tensor.dims) == 2]
    assert kinds == [TensorProto.INT8]


def test_nothing_to_quantize() -> None:
    model = product()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT[:, :2], "w"))

    assert find_products(model) == []
    assert len(find_products(model, fewest_outputs=1)) == 1
    assert quantize_graph(model, recipe("dynamic"), None, None) is None


@pytest.mark.parametrize(("entries", "width", "is_found"), [(80, 16, True), (80, 15, False), (60, 16, False)])
def test_tables(entries: int, width: int, is_found: bool) -> None:
    table = RNG.normal(size=(entries, width)).astype(np.float32)
    table[0] = 0
    table[1] *= 100
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "tokens", width])],
        [numpy_helper.from_array(table, "t")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)

    made = quantize_tables(model)

    assert list(find_tables(model)) == (["t"] if is_found else [])
    assert (made is not model) == is_found
    looked_up = run(made, np.arange(6)[None])[0]  # type: ignore[arg-type]
    largest = np.abs(table[:6]).max(axis=1, keepdims=True)
    assert (np.abs(looked_up - table[:6]) <= largest / 127).all()
    assert (looked_up[0] == 0).all()
