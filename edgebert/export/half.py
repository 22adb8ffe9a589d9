"""A graph in fp16, for GPUs: weights and hidden states have 16 bits, what decides keeps 32.

Hidden states have 16 bits between graphs. Everything they depend on is computed in fp16, but softmax in fp32; what
leads to an exit, a gate, a plan, a choice or an answer, and to no hidden state, stays fp32 as it is, since
probabilities that are summed over layers do not bear the rounding. Constants that fp16 cannot hold, such as those of
masks, become the largest it can.

ONNX Runtime's own converter was tried first: with nodes kept in fp32 it gave graphs that were no longer sorted, casts
of one name twice, and answers that were not numbers.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgebert.bundle.manifest import STATES

_KEPT_OPERATORS = ("Softmax", "LogSoftmax", "Sigmoid", "ScatterND")
"""Computed in fp32 wherever they stand; `ScatterND` since ONNX Runtime adds in fp32 only on the processor."""

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def half_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph in fp16.

    Args:
        model: The graph in fp32, without subgraphs; its inputs and outputs bear the names of values, `_out` appended
            where one is both.
    """
    made = onnx.ModelProto()
    made.CopyFrom(onnx.shape_inference.infer_shapes(model))
    rewriting = _Halving(made.graph)
    nodes, constants = rewriting.nodes(), rewriting.constants()
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    del made.graph.initializer[:]
    made.graph.initializer.extend(constants)
    del made.graph.value_info[:]
    for value in (*made.graph.input, *made.graph.output):
        if value.name.removesuffix("_out") in STATES:
            value.type.tensor_type.elem_type = _HALF
    onnx.checker.check_model(made, full_check=True)
    return made


class _Halving:
    """The nodes and constants of a graph, each in the precision it is to have, with casts between the two."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {constant.name: constant for constant in graph.initializer}
        typed = (*graph.input, *graph.value_info, *graph.output)
        self._floats = {value.name for value in typed if value.type.tensor_type.elem_type == _FLOAT}
        self._floats |= {constant.name for constant in graph.initializer if constant.data_type == _FLOAT}
        outputs = [value.name for value in graph.output]
        self._in_half = _needed_nodes(graph, [name for name in outputs if name.removesuffix("_out") in STATES])
        self._halves = {value.name for value in graph.input if value.name in STATES}
        self._outputs = {name: name.removesuffix("_out") in STATES for name in outputs}
        self._used: dict[str, tuple[str, bool]] = {}
        self._made: list[onnx.NodeProto] = []
        self._cast: set[str] = set()

    def nodes(self) -> list[onnx.NodeProto]:
        """Returns the nodes, in their order, with casts before the first that needs them; to be called once."""
        for number, old in enumerate(self._graph.node):
            node = onnx.NodeProto.FromString(old.SerializeToString())
            is_half = number in self._in_half and node.op_type not in _KEPT_OPERATORS
            node.input[:] = [self._read(name, is_half) if name in self._floats else name for name in node.input]
            if is_half:
                _halve_attributes(node)
                self._halves.update(name for name in node.output if name in self._floats)
            if node.op_type == "Attention":
                node.attribute.append(helper.make_attribute("softmax_precision", _FLOAT))
            self._name_outputs(node)
            self._made.append(node)
            for name in old.output:
                if name in self._outputs and name in self._floats and self._outputs[name] != (name in self._halves):
                    self._made.append(helper.make_node("Cast", [self._own(name)], [name], to=self._type(name)))
        return self._made

    def constants(self) -> list[onnx.TensorProto]:
        """Returns the constants that are read, under the names they are read by."""
        floats = [self._constant(self._constants[name], new, half) for new, (name, half) in self._used.items()]
        others = [constant for constant in self._graph.initializer if constant.data_type != _FLOAT]
        return [*floats, *(onnx.TensorProto.FromString(constant.SerializeToString()) for constant in others)]

    def _read(self, name: str, is_half: bool) -> str:
        """Returns what a node of a precision reads a value by; adds the cast where that is another's."""
        if name in self._constants:
            new = f"{name}_half" if is_half else name
            self._used[new] = (name, is_half)
            return new
        own = self._own(name)
        if (name in self._halves) == is_half:
            return own
        new = f"{name}_{'half' if is_half else 'float'}"
        if new not in self._cast:
            self._cast.add(new)
            self._made.append(helper.make_node("Cast", [own], [new], to=_HALF if is_half else _FLOAT))
        return new

    def _own(self, name: str) -> str:
        """Returns what a value is called in the precision it is made in: an output of the other one has its name."""
        wrong = name in self._outputs and self._outputs[name] != (name in self._halves)
        return f"{name}_made" if wrong and name in self._floats else name

    def _name_outputs(self, node: onnx.NodeProto) -> None:
        node.output[:] = [self._own(name) for name in node.output]

    def _type(self, name: str) -> int:
        return _HALF if self._outputs[name] else _FLOAT

    @staticmethod
    def _constant(old: onnx.TensorProto, name: str, is_half: bool) -> onnx.TensorProto:
        if not is_half:
            return onnx.TensorProto.FromString(old.SerializeToString())
        return numpy_helper.from_array(_as_half(numpy_helper.to_array(old)), name)


def _needed_nodes(graph: onnx.GraphProto, outputs: list[str]) -> set[int]:
    """Returns the places of the nodes that these outputs depend on."""
    makers = {name: number for number, node in enumerate(graph.node) for name in node.output}
    needed: set[int] = set()
    waiting = list(outputs)
    while waiting:
        number = makers.get(waiting.pop())
        if number is not None and number not in needed:
            needed.add(number)
            waiting.extend(graph.node[number].input)
    return needed


def _halve_attributes(node: onnx.NodeProto) -> None:
    """Lets a node that makes floats out of something else make those of 16 bits."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF
        elif attribute.HasField("t") and attribute.t.data_type == _FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_as_half(numpy_helper.to_array(attribute.t))))


def _as_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype(np.float16)
