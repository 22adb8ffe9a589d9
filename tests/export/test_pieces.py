"""A part in pieces: the graph against torch, what it leaves out, what it holds, and int8."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from edgebert.bundle.manifest import Macs
from edgebert.encoders._blocks import Encoder
from edgebert.export.link import GraphPlan
from edgebert.export.pieces import pieces_graph
from edgebert.methods._pieces import AttentionPart, FeedForwardPart, PiecewisePart
from edgebert.methods._program import CompiledStep
from edgebert.runtime.sessions import make_graph
from edgebert.text import Values

ROWS, TOKENS, PIECES = 5, 7, 4


def _plan(part: PiecewisePart) -> GraphPlan:
    is_attention = isinstance(part, AttentionPart)
    step = CompiledStep(
        kind="layer",
        layer=1,
        file="part",
        module=part,
        inputs=("hidden", "attention_mask", "choice") if is_attention else ("attended", "choice"),
        outputs=("attended",) if is_attention else ("hidden",),
        macs=Macs(),
        part="attention" if is_attention else "feed_forward",
        choice="choice",
        choices=PIECES,
    )
    return GraphPlan(step=step)


@pytest.fixture(params=["attention", "feed_forward"])
def part(request: pytest.FixtureRequest, make_encoder: Callable[..., Encoder]) -> PiecewisePart:
    layer = make_encoder().layers[1]
    return AttentionPart(layer.attention) if request.param == "attention" else FeedForwardPart(layer.feed_forward, 16)


@pytest.fixture
def graph(part: PiecewisePart, make_encoder: Callable[..., Encoder]) -> onnx.ModelProto:
    return pieces_graph(_plan(part), config=make_encoder().config, opset=23)


def _values(choice: NDArray[np.bool_]) -> Values:
    hidden = np.random.default_rng(0).standard_normal((ROWS, TOKENS, 32)).astype(np.float32)
    mask = (np.arange(TOKENS) < np.array([7, 3, 1, 7, 5])[:, None]).astype(np.int64)
    return {"hidden": hidden, "attended": hidden, "attention_mask": mask, "choice": choice}


def _torch(part: PiecewisePart, values: Values) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = part(
            *(torch.from_numpy(values[name]) for name in _plan(part).step.inputs)
        ).numpy()
    return result


CHOICES = {
    "all": np.ones((ROWS, PIECES), np.bool_),
    "every row its own": np.random.default_rng(1).random((ROWS, PIECES)) < 0.5,
    "one piece for all": np.arange(PIECES)[None, :] == np.full((ROWS, 1), 2),
    "none for some": (np.arange(PIECES)[None, :] == 1) & (np.arange(ROWS)[:, None] > 2),
    "none at all": np.zeros((ROWS, PIECES), np.bool_),
}


@pytest.mark.parametrize("name", CHOICES)
def test_pieces_graph_is_torch(part: PiecewisePart, graph: onnx.ModelProto, name: str) -> None:
    values = _values(CHOICES[name])

    (made,) = make_graph(graph.SerializeToString(), name="part", threads=1).run(values, ["made"]).values()

    real = values["attention_mask"] != 0
    assert np.abs(made - _torch(part, values))[real].max() <= 1e-5


def test_pieces_graph_does_not_compute_the_others(part: PiecewisePart, graph: onnx.ModelProto) -> None:
    values = _values(CHOICES["one piece for all"])
    expected = _torch(part, values)
    with torch.no_grad():  # what is chosen stays finite only if the others are never touched
        for linear in (module for module in part.modules() if isinstance(module, nn.Linear)):
            keeps = slice(2 * 8, 3 * 8) if isinstance(part, AttentionPart) else slice(2 * 16, 3 * 16)
            is_last = linear.out_features == 32 and (
                isinstance(part, FeedForwardPart) or linear is part.attention.output
            )
            weight = linear.weight.T if is_last else linear.weight
            poisoned = torch.full_like(weight, torch.nan)
            poisoned[keeps] = weight[keeps]
            weight.copy_(poisoned)

    poisoned_graph = pieces_graph(_plan(part), config=_Shape(), opset=23)  # type: ignore[arg-type]
    (made,) = make_graph(poisoned_graph.SerializeToString(), name="part", threads=1).run(values, ["made"]).values()

    real = values["attention_mask"] != 0
    assert np.abs(made - expected)[real].max() <= 1e-5


class _Shape:
    hidden_size = 32


def test_pieces_graph_holds_every_weight_once_and_no_branch(part: PiecewisePart, graph: onnx.ModelProto) -> None:
    held = sum(
        int(np.prod(value.dims)) for value in graph.graph.initializer if value.data_type == onnx.TensorProto.FLOAT
    )

    weights = sum(parameter.numel() for parameter in part.parameters())
    assert weights <= held <= weights + 20
    assert not [node for node in graph.graph.node if node.op_type in ("If", "Loop", "Scan")]


@pytest.mark.parametrize("block_size", [1, 2])
def test_pieces_graph_of_very_many_gathers_them(make_encoder: Callable[..., Encoder], block_size: int) -> None:
    part = FeedForwardPart(make_encoder(feed_forward_size=160).layers[1].feed_forward, block_size)
    count = 160 // block_size
    step = replace(_plan(part).step, inputs=("attended", "block_choice"), choice="block_choice", choices=count)

    def run(choice: NDArray[np.bool_]) -> tuple[onnx.ModelProto, NDArray[np.float32], Values]:
        values = {**_values(choice), "block_choice": choice}
        model = pieces_graph(GraphPlan(step=step), config=make_encoder().config, opset=23)
        (made,) = make_graph(model.SerializeToString(), name="part", threads=1).run(values, ["made"]).values()
        return model, made, values

    random = np.random.default_rng(2)
    for choice in (
        random.random((ROWS, count)) < 0.3,  # every row another number of them
        random.random((ROWS, count)).argsort(axis=1) < 20,
        np.ones((ROWS, count), np.bool_),
        np.zeros((ROWS, count), np.bool_),
    ):
        model, made, values = run(choice)
        parts = {**values, "choice": values["block_choice"]}
        with torch.no_grad():
            expected = part(torch.from_numpy(parts["attended"]), torch.from_numpy(parts["block_choice"])).numpy()
        assert len(model.graph.node) < 60
        assert np.abs(made - expected).max() <= 1e-5

    kept = np.arange(count)[None, :] == np.full((ROWS, 1), 3)
    expected = run(kept)[1]
    with torch.no_grad():  # what is chosen stays finite only if the others are never touched
        neurons = slice(3 * block_size, 4 * block_size)
        for weight in (part.feed_forward.expand.weight, part.feed_forward.contract.weight.T):
            poisoned = torch.full_like(weight, torch.nan)
            poisoned[neurons] = weight[neurons]
            weight.copy_(poisoned)
    assert np.abs(run(kept)[1] - expected).max() <= 1e-5


def test_pieces_graph_same_weights_same_bytes(
    part: PiecewisePart, graph: onnx.ModelProto, make_encoder: Callable[..., Encoder]
) -> None:
    again = pieces_graph(_plan(part), config=make_encoder().config, opset=23)

    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_pieces_graph_can_be_quantized(part: PiecewisePart, graph: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(graph, tmp_path / "fp32.onnx")
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", per_channel=True, extra_options=options)
    quantized = make_graph((tmp_path / "int8.onnx").read_bytes(), name="int8", threads=1)

    for name in ("all", "every row its own", "none for some"):
        values = _values(CHOICES[name])
        expected = _torch(part, values)[values["attention_mask"] != 0]
        (made,) = quantized.run(values, ["made"]).values()
        assert np.abs(made[values["attention_mask"] != 0] - expected).mean() <= 0.05 * np.abs(expected).mean()
