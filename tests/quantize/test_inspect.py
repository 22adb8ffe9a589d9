import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import QualityError
from edgebert.quantize._graphs import graph_bytes
from edgebert.quantize._inspect import check_graph

WEIGHT = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)


def _widened(domain: str = "") -> onnx.ModelProto:
    """A float product whose matrix is kept in int8 and widened first: small, and no faster."""
    constants = [
        numpy_helper.from_array((WEIGHT * 20).astype("int8"), "w8"),
        numpy_helper.from_array(np.float32(WEIGHT.max() / 127), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu" if not domain else "Odd", ["m"], ["y"], domain=domain),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", k]) for n, k in (("x", 40), ("y", 32))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_a_widened_weight_is_refused() -> None:
    model = _widened()

    with pytest.raises(
        QualityError, match=r"^x\.onnx: ONNX Runtime [\d.]+ would widen 1 quantized weights and multiply"
    ):
        check_graph(model, graph_bytes(model), name="x.onnx")


def test_operators_of_other_domains_are_refused() -> None:
    model = _widened("org.example")

    with pytest.raises(QualityError, match=r"has operators of org\.example, which a stock ONNX Runtime does not know"):
        check_graph(model, graph_bytes(model), name="x.onnx")
