import onnx
import pytest
from onnx import TensorProto, helper

from edgebert.export.passes import apply_passes
from edgebert.export.passes.strip_metadata import apply


@pytest.fixture
def model() -> onnx.ModelProto:
    """b = a + 1, with everything an exporter may leave behind."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    add = helper.make_node("Add", ["a", "one"], ["b"], name="add", doc_string="from somewhere.py")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"], doc_string="x") for name in "ab"]
    graph = helper.make_graph(
        [add], "torch-main", values[:1], values[1:], [one], doc_string="x", value_info=[values[1]]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], producer_name="torch", doc_string="x")
    made.producer_version = "2"
    for part in (made, graph, made.graph, made.graph.node[0], made.graph.input[0], made.graph.initializer[0]):
        part.metadata_props.add(key="stack_trace", value="/home/somebody")
    one.doc_string = "x"
    return made


def test_strip_metadata_removes_what_does_not_compute(model: onnx.ModelProto) -> None:
    result = apply(model)

    text = result.model.SerializeToString()
    assert result.modified
    assert (result.model.producer_name, result.model.graph.name) == ("edgebert", "graph")
    assert not any(word in text for word in (b"torch", b"somewhere", b"stack_trace", b"somebody"))
    assert not result.model.graph.value_info


def test_strip_metadata_keeps_what_computes(model: onnx.ModelProto) -> None:
    stripped = apply(model).model

    assert stripped.graph.node[0].op_type == "Add"
    assert list(stripped.graph.node[0].input) == ["a", "one"]
    assert stripped.graph.initializer[0].float_data[:] == [1.0]
    assert stripped.opset_import == model.opset_import
    onnx.checker.check_model(stripped)


def test_strip_metadata_leaves_the_given_model_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()

    apply(model)

    assert model.SerializeToString() == before


def test_strip_metadata_twice_changes_nothing(model: onnx.ModelProto) -> None:
    once = apply(model).model

    again = apply(once)

    assert not again.modified
    assert again.model == once


def test_apply_passes_checks_the_result(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"

    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        apply_passes(model)


def test_apply_passes_strips(model: onnx.ModelProto) -> None:
    assert apply_passes(model) == apply(model).model
