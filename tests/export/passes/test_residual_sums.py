import onnx
from onnx import TensorProto, helper

from edgebert.export.passes.residual_sums import apply


def _model(operator: str) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "abc"]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["inner"]),
        helper.make_node(operator, ["inner", "b"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale"], ["c"]),
    ]
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [4], [1.0] * 4)
    graph = helper.make_graph(nodes, "graph", values[:2], values[2:], [scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def test_residual_sums_changes_the_sum_that_is_normed_alone() -> None:
    result = apply(_model("Add"))

    assert result.modified
    assert [node.op_type for node in result.model.graph.node] == ["Add", "Sum", "LayerNormalization"]
    onnx.checker.check_model(result.model, full_check=True)


def test_residual_sums_without_a_sum() -> None:
    result = apply(_model("Mul"))

    assert not result.modified
    assert result.model == _model("Mul")
