"""A part of a layer as the sum of the pieces each row chose: one graph that computes these pieces and no others.

Piece i reads the rows that chose it, expands them (one matrix product), they are mixed (the attention of a head, for
all pieces together; or the activation, for each apart), and what piece i contracts them to (another product) is added
to its rows. A piece nobody chose meets no row, and a product of no rows costs next to nothing. There is no branch in
the graph: ONNX Runtime packs every weight once and shares none, and quantizers see ordinary products.

Measured on one x86 core (AVX512, onnxruntime 1.31, 6 layers of MiniLM-L6, one thread, batch 1, 32 tokens, half of the
pieces), as a share of the fused layers' time, predictors included, on a machine with other work (+- 0.1):

| how | parts timed alone, summed | in a chain |
|---|---|---|
| this form, 12 heads and 4 / 6 / 8 / 12 blocks | 0.73 / 0.74 / 0.76 / 0.80 | (through the engine, 8 blocks) 0.83 |
| an `If` for each piece, 12 blocks, weights outside the branches | 0.84 | 0.96 |
| the same, weights inside the branches, at 2.5 times the memory | - | 0.93 |
| this form with an attention for each head | - | 1.06 |

Since then the activation follows each block's product at once, instead of that of all blocks put together and taken
apart again, and the rows of a piece are listed once: 5 % less time at 32 tokens, 3 % at 128, 6 % for 32 rows (1.32).

A branch costs about 10 us whether taken or not, a call of a session 13 us, a node that meets no row 1 us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgebert.encoders._blocks import EncoderConfig
from edgebert.export.link import GraphPlan, LinkedModule
from edgebert.export.passes import apply_passes
from edgebert.export.trace import graph_outputs, trace_module
from edgebert.methods._pieces import Pieces, PiecewisePart
from edgebert.methods._program import CompiledStep

MOST_PIECES = 64
"""Beyond so many pieces of a feed-forward part a node for each costs more than its arithmetic, and the weights of the
chosen ones are gathered for each row instead: nothing else is computed, but moving weights takes time of its own."""


def pieces_graph(plan: GraphPlan, *, config: EncoderConfig, opset: int) -> onnx.ModelProto:
    """Returns the graph of a part in pieces and of the steps linked behind it.

    Args:
        plan: Its step's module is a `PiecewisePart`; the choice, bool [batch, pieces], is among its inputs.
        config: The encoder's shape.
        opset: ONNX operator set.
    """
    step, part = plan.step, plan.step.module
    assert isinstance(part, PiecewisePart)
    assert step.choice is not None
    pieces, mask = part.pieces(), "attention_mask"
    masks = (mask,) if mask in plan.inputs else ()
    last = replace(step, module=_Finish(pieces.norm), inputs=("attended_sum", *masks))
    finish = LinkedModule(last, plan.linked, last.inputs)
    finish_graph = trace_module(
        finish, last.inputs, plan.outputs, config=config, opset=opset, widths={"attended_sum": config.hidden_size}
    )

    graph = _Graph()
    is_gathered = step.choices > MOST_PIECES and not pieces.reads_mask
    total = (_gathered if is_gathered else _piece_by_piece)(graph, step, pieces, config, opset)
    made = graph.inline(finish_graph, {"attended_sum": total, mask: mask})
    types = [value.type for value in finish_graph.graph.output]
    return _model(graph, plan, dict(zip(made, types, strict=True)), config, opset)


def _piece_by_piece(graph: _Graph, step: CompiledStep, pieces: Pieces, config: EncoderConfig, opset: int) -> str:
    """Adds every piece on the rows that chose it; returns the sum of the input, the bias and what the pieces give."""
    assert step.choice is not None
    x, mask = step.inputs[0], "attention_mask"
    count, _, width = pieces.expand.shape
    masks = (mask,) if pieces.reads_mask else ()
    mix = trace_module(
        pieces.mix, ("expanded", *masks), ("mixed",), config=config, opset=opset, widths={"expanded": width}
    )
    of_piece = graph.add("NonZero", graph.add("Transpose", step.choice, perm=[1, 0]))  # [2, pairs]: piece, row
    piece, row = (graph.add("Reshape", value, graph.integers(-1, 1)) for value in graph.split(of_piece, 2))
    counts = graph.add("ReduceSum", graph.add("Cast", step.choice, to=TensorProto.INT64), graph.integers(0), keepdims=0)
    rows = graph.split(row, count, counts)
    expanded = [
        graph.add("MatMul", graph.add("GatherND", x, rows[i]), graph.weight(pieces.expand[i])) for i in range(count)
    ]
    if pieces.reads_mask:
        biases = graph.add("GatherND", graph.weight(pieces.expand_bias[:, None]), piece)
        biased = graph.add("Add", graph.add("Concat", *expanded, axis=0), biases)
        (together,) = graph.inline(mix, {"expanded": biased, mask: graph.add("GatherND", mask, row)})
        mixed = graph.split(together, count, counts)
    else:
        mixed = []
        for i in range(count):
            biased = graph.add("Add", expanded[i], graph.weight(pieces.expand_bias[i]))
            mixed += graph.inline(mix, {"expanded": biased})
    total = graph.add("Add", x, graph.weight(pieces.bias))
    for i in range(count):
        contracted = graph.add("MatMul", mixed[i], graph.weight(pieces.contract[i]))
        total = graph.add("ScatterND", total, rows[i], contracted, reduction="add")
    return total


def _gathered(graph: _Graph, step: CompiledStep, pieces: Pieces, config: EncoderConfig, opset: int) -> str:
    """Adds the chosen pieces of each row as one matrix of its own; returns the same sum as `_piece_by_piece`.

    Rows may choose different numbers of pieces: those with fewer than the most have slots whose result counts as 0.
    """
    assert step.choice is not None
    x = step.inputs[0]
    _, hidden, width = pieces.expand.shape
    mix = trace_module(pieces.mix, ("expanded",), ("mixed",), config=config, opset=opset, widths={"expanded": width})
    chosen = graph.add("Cast", step.choice, to=TensorProto.FLOAT)
    counts = graph.add("ReduceSum", chosen, graph.integers(1), keepdims=0)
    most = graph.add("Cast", graph.add("ReduceMax", counts, graph.integers(0), keepdims=1), to=TensorProto.INT64)
    slots = graph.add("Max", most, graph.integers(1))  # ONNX Runtime's product over no columns is not 0 but anything
    is_used, places = graph.add_many(2, "TopK", chosen, slots, axis=1)
    neurons = graph.integers(0, -1, hidden)
    expand = graph.add("Gather", graph.weight(pieces.expand.transpose(1, 2)), places)
    contract = graph.add("Gather", graph.weight(pieces.contract), places)
    biases = graph.add("Gather", graph.weight(pieces.expand_bias), places)
    inner = graph.add(
        "MatMul", graph.add("Reshape", expand, neurons), graph.add("Transpose", x, perm=[0, 2, 1])
    )  # [rows, neurons, tokens]: only activations are turned round, never weights
    expanded = graph.add("Add", inner, graph.add("Reshape", biases, graph.integers(0, -1, 1)))
    (mixed,) = graph.inline(mix, {"expanded": expanded})
    used = graph.add("Expand", graph.add("Unsqueeze", is_used, graph.integers(2)), graph.integers(1, 1, width))
    is_counted = graph.add("Cast", graph.add("Reshape", used, graph.integers(0, -1, 1)), to=TensorProto.BOOL)
    counted = graph.add("Where", is_counted, mixed, graph.weight(pieces.bias.new_zeros(())))
    turned = graph.add("Transpose", counted, perm=[0, 2, 1])
    contracted = graph.add("MatMul", turned, graph.add("Reshape", contract, neurons))
    return graph.add("Add", graph.add("Add", x, graph.weight(pieces.bias)), contracted)


class _Finish(nn.Module):
    """The norm at the end of a part."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, total: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.norm(total)


class _Graph:
    """A graph in the making; every method that adds something returns the names of what it gives."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"value_{self.names}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = self.name()
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def add_many(self, outputs: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def split(self, value: str, parts: int, sizes: str | None = None) -> list[str]:
        """Cuts a value along axis 0, into equal parts where no sizes are given."""
        outputs = [self.name() for _ in range(parts)]
        inputs = [value, sizes or self.integers(*[1] * parts)]
        self.nodes.append(helper.make_node("Split", inputs, outputs, axis=0))
        return outputs

    def integers(self, *values: int) -> str:
        return self._initializer(np.array(values, np.int64))

    def weight(self, values: Tensor) -> str:
        return self._initializer(np.ascontiguousarray(values.cpu().numpy()))

    def inline(self, model: onnx.ModelProto, values: dict[str, str]) -> list[str]:
        """Puts a whole graph into this one; `values` says what its inputs are."""
        names = {value.name: values[value.name] for value in model.graph.input}
        for initializer in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(initializer)
            copy.name = names[initializer.name] = self.name()
            self.initializers.append(copy)
        for node in model.graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.ClearField("name")
            names.update({output: self.name() for output in node.output if output})
            copied.input[:] = [names[value] if value else "" for value in node.input]
            copied.output[:] = [names[value] if value else "" for value in node.output]
            self.nodes.append(copied)
        return [names[value.name] for value in model.graph.output]

    def _initializer(self, values: np.ndarray[Any, Any]) -> str:
        name = self.name()
        self.initializers.append(numpy_helper.from_array(values, name))
        return name


def _model(
    graph: _Graph, plan: GraphPlan, made: Mapping[str, onnx.TypeProto], config: EncoderConfig, opset: int
) -> onnx.ModelProto:
    """Finishes a graph: its outputs, given with their types, get their names, and its inputs their types."""
    outputs = graph_outputs(plan.inputs, plan.outputs)
    names = dict(zip(made, outputs, strict=True))
    for node in graph.nodes:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    inputs = []
    for name in plan.inputs:
        if name == plan.step.choice:
            inputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, ["batch", plan.step.choices]))
        elif name == "attention_mask":
            inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]))
        else:
            shape = ["batch", "tokens", config.hidden_size]
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    results = [helper.make_value_info(name, kind) for name, kind in zip(outputs, made.values(), strict=True)]
    made_graph = helper.make_graph(graph.nodes, "graph", inputs, results, graph.initializers)
    model = helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return apply_passes(model)
