"""What in a graph can be quantized, and how a graph is rewritten: the same graph always gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FEWEST_OUTPUTS = 16
"""Products of fewer outputs stay fp32: labels, halting units, gates. They decide, and cost next to nothing."""

NARROWEST_TABLE = 16
"""Tables of shorter rows stay fp32: those are counts that decide how deep a text goes, not embeddings."""

SMALLEST_TABLE = 1024
"""Tables of fewer numbers stay fp32, such as those of two segments."""

_FEW_BITS = frozenset(getattr(onnx.TensorProto, kind) for kind in ("INT8", "UINT8", "INT4", "UINT4"))

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class Product:
    """A product with a constant matrix.

    Attributes:
        node: The `MatMul` or `Gemm`.
        activation: The name of what is multiplied, float [..., inputs].
        weight: The matrix's name.
        values: The matrix, float32 [inputs, outputs].
        bias: The name of what is added, or None.
    """

    node: onnx.NodeProto
    activation: str
    weight: str
    values: NDArray[np.float32]
    bias: str | None


def read_graph(data: bytes) -> onnx.ModelProto:
    """Returns a graph of its bytes."""
    return onnx.load_from_string(data)


def graph_bytes(model: onnx.ModelProto) -> bytes:
    """Returns the bytes of a graph."""
    return model.SerializeToString(deterministic=True)


def find_products(model: onnx.ModelProto, *, fewest_outputs: int = FEWEST_OUTPUTS) -> list[Product]:
    """Returns the products with constant float32 matrices of at least so many outputs, in the graph's order."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
            continue
        activation, weight = node.input[0], constants.get(node.input[1])
        if weight is None or activation in constants:
            continue
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if given.get("transA") or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            continue
        is_turned = bool(given.get("transB"))
        if weight.dims[0 if is_turned else 1] < fewest_outputs:
            continue
        values = numpy_helper.to_array(weight)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        found.append(Product(node, activation, weight.name, values.T if is_turned else values, bias))
    return found


def has_fewer_bits(model: onnx.ModelProto) -> bool:
    """Says whether a graph holds constants of 8 or 4 bits; one that a backend gave back as it was has none."""
    return any(constant.data_type in _FEW_BITS for constant in model.graph.initializer)


def find_tables(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Returns the embedding tables, float32 [entries, width]: constants whose rows are looked up, and nothing else."""
    uses: dict[str, list[bool]] = {}
    for node in model.graph.node:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        for number, name in enumerate(node.input):
            uses.setdefault(name, []).append(node.op_type == "Gather" and number == 0 and axis == 0)
    return {
        constant.name: numpy_helper.to_array(constant)
        for constant in model.graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT
        and len(constant.dims) == 2
        and constant.dims[1] >= NARROWEST_TABLE
        and constant.dims[0] * constant.dims[1] >= SMALLEST_TABLE
        and all(uses.get(constant.name, [False]))
    }


class Rewriting:
    """A graph that is being rewritten: its nodes are passed through in order, some of them replaced by others."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self._taken |= {constant.name for constant in model.graph.initializer}
        self._replaced: dict[str, list[onnx.NodeProto]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._domains: set[str] = set()

    def replace(self, node: onnx.NodeProto) -> None:
        """Starts the nodes that take the place of this one; they are those added from now on."""
        self._nodes = self._replaced.setdefault(node.output[0], [])

    def add(self, operator: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its first output."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        self._domains.add(domain)
        return outputs[0]

    def name(self, wanted: str) -> str:
        """Returns a name that nothing has yet."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, wanted: str, values: NDArray[Any]) -> str:
        """Adds a constant and returns its name."""
        name = self.name(wanted)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def finish(self) -> onnx.ModelProto:
        """Returns the graph with the nodes replaced, and without constants that nothing reads any more."""
        graph = self.model.graph
        nodes = [new for node in graph.node for new in self._replaced.get(node.output[0], [node])]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        constants = [constant for constant in graph.initializer if constant.name in read]
        copied = [onnx.TensorProto.FromString(constant.SerializeToString()) for constant in constants]
        del graph.initializer[:]
        graph.initializer.extend(copied)
        known = {entry.domain for entry in self.model.opset_import}
        for domain in sorted(self._domains - known - {""}):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))
        onnx.checker.check_model(self.model)
        return self.model
