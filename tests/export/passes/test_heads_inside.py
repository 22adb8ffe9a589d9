import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgebert.encoders._blocks import EncoderConfig, Layer
from edgebert.export.passes.heads_inside import apply
from edgebert.export.trace import as_exported, sample

SHAPE = EncoderConfig(family="bert", layers=1, hidden_size=12, heads=3, feed_forward_size=16, vocabulary_size=20)


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """A layer as the exporter writes it."""
    torch.manual_seed(0)
    inputs = ("hidden", "attention_mask")
    return as_exported(Layer(SHAPE), inputs, ["hidden"], tuple(sample(name, SHAPE) for name in inputs), opset=23)


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _states(model: onnx.ModelProto, heads: str) -> str:
    """The name of what heads are split from."""
    makers = {name: node for node in model.graph.node for name in node.output}
    return str(makers[makers[heads].input[0]].input[0])


def test_heads_inside_leaves_no_reshape(exported: onnx.ModelProto) -> None:
    result = apply(exported)

    (attention,) = [node for node in result.model.graph.node if node.op_type == "Attention"]
    heads = {attribute.name: attribute.i for attribute in attention.attribute if attribute.name.endswith("num_heads")}
    assert result.modified
    assert _operators(exported).count("Transpose") == 4
    assert not {"Transpose", "Reshape"} & set(_operators(result.model))
    assert heads == {"q_num_heads": 3, "kv_num_heads": 3}
    read = {name for node in result.model.graph.node for name in node.input}
    assert all(constant.name in read for constant in result.model.graph.initializer)
    onnx.checker.check_model(result.model, full_check=True)


def test_heads_inside_computes_the_same(exported: onnx.ModelProto) -> None:
    generator = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])  # padded on the right
    inputs = {"hidden": generator.normal(size=(3, 5, 12)).astype(np.float32), "attention_mask": mask}

    before, after = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
        for model in (exported, apply(exported).model)
    )

    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_heads_inside_says_how_many_heads_once(exported: onnx.ModelProto) -> None:
    """Some exporters have written the counts beside heads that are apart already."""
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    (attention,) = [node for node in model.graph.node if node.op_type == "Attention"]
    attention.attribute.append(onnx.helper.make_attribute("q_num_heads", 7))

    onnx.checker.check_model(apply(model).model)

    assert apply(model).model == apply(exported).model


def test_heads_inside_twice_changes_nothing(exported: onnx.ModelProto) -> None:
    once = apply(exported).model

    assert not apply(once).modified


@pytest.mark.parametrize("place", ["before", "after", "read elsewhere", "joined flat", "split of flat"])
def test_heads_inside_leaves_other_forms_alone(exported: onnx.ModelProto, place: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    (attention,) = [node for node in model.graph.node if node.op_type == "Attention"]
    if place == "read elsewhere":
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(attention.output[0]))
    joined = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type in ("Transpose", "Reshape")}
    flat = {"joined flat": joined[joined[attention.output[0]]], "split of flat": _states(model, attention.input[0])}
    for value in model.graph.value_info:
        if value.name == flat.get(place):
            del value.type.tensor_type.shape.dim[0]
    for node in model.graph.node:
        is_split, is_join = node.output[0] == attention.input[1], node.input[0] == attention.output[0]
        if (is_split and place == "before") or (is_join and place == "after"):
            (order,) = node.attribute
            order.ints[:] = [0, 1, 2, 3]

    result = apply(model)

    assert not result.modified
    assert result.model == model
