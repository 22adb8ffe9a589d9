"""A graph in the making: values that are computed with like arrays, whole graphs put in, and branches.

Every node goes to the branch that is being written; weights and numbers go to the graph as a whole, each stored once,
where every branch sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import ConfigError

BOOL, INT64, FLOAT, DOUBLE = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE

Branch = Callable[[], "Sequence[Value]"]


@dataclass(frozen=True, eq=False)
class Value:
    """What a node gives, or an input or a constant: to be computed with like an array of one row.

    Attributes:
        graph: The graph it belongs to.
        name: Its name there.
        type: Its ONNX element type.
    """

    graph: Graph
    name: str
    type: int

    def __add__(self, other: Value | float) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("Sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.graph.constant(other, self.type) - self

    def __mul__(self, other: Value | float) -> Value:
        return self._with("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._with("Div", other)

    def __pow__(self, other: float) -> Value:
        return self._with("Pow", other)

    def __neg__(self) -> Value:
        return self.apply("Neg")

    def __and__(self, other: Value) -> Value:
        return self._with("And", other)

    def __or__(self, other: Value) -> Value:
        return self._with("Or", other)

    def __invert__(self) -> Value:
        return self.apply("Not")

    def __lt__(self, other: Value | float) -> Value:
        return self._with("Less", other, BOOL)

    def __le__(self, other: Value | float) -> Value:
        return self._with("LessOrEqual", other, BOOL)

    def __ge__(self, other: Value | float) -> Value:
        return self._with("GreaterOrEqual", other, BOOL)

    def equals(self, other: Value | float) -> Value:
        """Returns bool, element by element."""
        return self._with("Equal", other, BOOL)

    def at_least(self, other: Value | float) -> Value:
        """Returns the larger of both, element by element."""
        return self._with("Max", other)

    def at_most(self, other: Value | float) -> Value:
        """Returns the smaller of both, element by element."""
        return self._with("Min", other)

    def cast(self, kind: int) -> Value:
        """Returns the same numbers as another element type."""
        return self if kind == self.type else self.apply("Cast", kind=kind, to=kind)

    def sum(self, axis: int = -1, *, keep: bool = False) -> Value:
        """Returns the sum over an axis."""
        return self.apply("ReduceSum", self.graph.constant([axis], INT64), keepdims=int(keep))

    def max(self, axis: int = -1, *, keep: bool = False) -> Value:
        """Returns the largest along an axis."""
        return self.apply("ReduceMax", self.graph.constant([axis], INT64), keepdims=int(keep))

    def any(self, axis: int = -1) -> Value:
        """Returns whether any along an axis is true."""
        return self.cast(INT64).max(axis) >= 1

    def argmax(self, *, keep: bool = False) -> Value:
        """Returns the place of the largest along the last axis, int64; of equal ones the first."""
        return self.apply("ArgMax", kind=INT64, axis=-1, keepdims=int(keep))

    def reshape(self, *sizes: int) -> Value:
        """Returns the same numbers in another shape; -1 is what is left, 0 the size it had."""
        return self.apply("Reshape", self.graph.constant(list(sizes), INT64))

    def take(self, places: Value, axis: int) -> Value:
        """Returns what stands at some places of an axis."""
        return self.apply("Gather", places, axis=axis)

    def columns(self, first: int, last: int) -> Value:
        """Returns a range of the second axis, the last one not included."""
        numbers = [self.graph.constant([number], INT64) for number in (first, last, 1)]
        return self.apply("Slice", *numbers)

    def top(self, count: Value, *, largest: bool = True) -> tuple[Value, Value]:
        """Returns so many of the largest (or smallest) along the last axis, and their places; of equal ones the first.

        Args:
            count: How many, int64 [1].
            largest: Whether the largest are wanted, the largest first, or the smallest, the smallest first.
        """
        inputs = [self.name, count.name]
        values, places = self.graph.add("TopK", inputs, outputs=2, axis=-1, largest=int(largest), sorted=1)
        return Value(self.graph, values, self.type), Value(self.graph, places, INT64)

    def apply(self, operator: str, *others: Value, kind: int | None = None, **attributes: Any) -> Value:
        """Returns what an operator makes of this value and others; its element type is `kind`, None: the same."""
        inputs = [self.name, *(other.name for other in others)]
        (name,) = self.graph.add(operator, inputs, **attributes)
        return Value(self.graph, name, self.type if kind is None else kind)

    def _with(self, operator: str, other: Value | float, kind: int | None = None) -> Value:
        if not isinstance(other, Value):
            other = self.graph.constant(other, self.type)
        return self.apply(operator, other.cast(self.type), kind=kind)


class Graph:
    """A graph in the making.

    Args:
        opset: ONNX operator set.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._domains: dict[str, int] = {"": opset}
        self._ir_version = 10
        self._scopes: list[list[onnx.NodeProto]] = [[]]
        self._inputs: list[onnx.ValueInfoProto] = []
        self._defaults: list[onnx.TensorProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._names_of_constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def input(self, name: str, kind: int, shape: Sequence[int | str], default: NDArray[Any] | None = None) -> Value:
        """Adds an input; one with a default may be left out when the graph is run."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        if default is not None:
            self._defaults.append(numpy_helper.from_array(default, name))
        return Value(self, name, kind)

    def constant(self, number: object, kind: int) -> Value:
        """Returns a number or a list of them as a value."""
        array = np.asarray(number, helper.tensor_dtype_to_np_dtype(kind))
        return Value(self, self._store(numpy_helper.from_array(array)), kind)

    def add(
        self, operator: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Adds a node to the branch that is being written and returns the names of its outputs."""
        names = [self._name() for _ in range(outputs)]
        self._scopes[-1].append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names

    def inline(self, model: onnx.ModelProto, values: Mapping[str, Value]) -> list[Value]:
        """Puts a whole graph in; `values` has what its inputs are. Returns its outputs.

        Raises:
            ConfigError: It is of another operator set than graphs before it.
        """
        for domain in model.opset_import:
            name = "" if domain.domain == "ai.onnx" else domain.domain
            if self._domains.setdefault(name, domain.version) != domain.version:
                raise ConfigError(
                    f"the graphs are of different operator sets, {self._domains[name]} and {domain.version}; "
                    "export the bundle again."
                )
        self._ir_version = max(self._ir_version, model.ir_version)
        names = {value.name: values[value.name].name for value in model.graph.input}
        names.update({constant.name: self._store(constant) for constant in model.graph.initializer})
        for node in model.graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.ClearField("name")
            names.update({output: self._name() for output in node.output if output})
            copied.input[:] = [names[name] if name else "" for name in node.input]
            copied.output[:] = [names[name] if name else "" for name in node.output]
            self._scopes[-1].append(copied)
        return [Value(self, names[made.name], made.type.tensor_type.elem_type) for made in model.graph.output]

    def branch(self, condition: Value, then: Branch, otherwise: Branch) -> list[Value]:
        """Computes one of two things and returns what it gives.

        Args:
            condition: Which, bool [1].
            then: Writes what is computed where the condition holds.
            otherwise: Writes what is computed where it does not; gives as many values of the same types.
        """
        yes, types = self._write(then)
        no, types_otherwise = self._write(otherwise)
        assert types == types_otherwise, (types, types_otherwise)
        names = self.add("If", [condition.name], outputs=len(types), then_branch=yes, else_branch=no)
        return [Value(self, name, kind) for name, kind in zip(names, types, strict=True)]

    def finish(self, outputs: Mapping[str, tuple[Value, Sequence[int | str]]], facts: Mapping[str, str]) -> bytes:
        """Returns the bytes of the whole graph, which depend on nothing but what was put in.

        Args:
            outputs: What it gives, by name, with their shapes.
            facts: What the file says of itself.
        """
        results = []
        for name, (value, shape) in outputs.items():
            self._scopes[0].append(helper.make_node("Identity", [value.name], [name]))
            results.append(helper.make_tensor_value_info(name, value.type, shape))
        nodes = needed_nodes(self._scopes[0], set(outputs))
        read = names_read(nodes)
        inputs = [value for value in self._inputs if value.name in read]
        constants = [constant for constant in (*self._defaults, *self._constants.values()) if constant.name in read]
        graph = helper.make_graph(nodes, "graph", inputs, results, constants)
        domains = [helper.make_opsetid(domain, version) for domain, version in sorted(self._domains.items())]
        model = helper.make_model(graph, opset_imports=domains, ir_version=self._ir_version, producer_name="edgebert")
        helper.set_model_props(model, dict(sorted(facts.items())))
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _write(self, branch: Branch) -> tuple[onnx.GraphProto, list[int]]:
        nodes: list[onnx.NodeProto] = []
        self._scopes.append(nodes)
        values = [value.apply("Identity") for value in branch()]  # what a branch gives must be made in it
        self._scopes.pop()
        results = [helper.make_tensor_value_info(value.name, value.type, None) for value in values]
        kept = needed_nodes(nodes, {value.name for value in values})
        return helper.make_graph(kept, "branch", [], results), [value.type for value in values]

    def _store(self, constant: onnx.TensorProto) -> str:
        """Keeps a constant, unless one like it is kept already, and returns its name."""
        unnamed = onnx.TensorProto()
        unnamed.CopyFrom(constant)
        unnamed.ClearField("name")
        key = (unnamed.data_type, tuple(unnamed.dims), unnamed.SerializeToString(deterministic=True))
        if key not in self._names_of_constants:
            unnamed.name = self._names_of_constants[key] = self._name()
            self._constants[unnamed.name] = unnamed
        return self._names_of_constants[key]

    def _name(self) -> str:
        self._count += 1
        return f"value_{self._count}"


def needed_nodes(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that lead to what is wanted, in their order."""
    wanted = set(wanted)
    needed = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted |= names_read([node])
    return needed[::-1]


def names_read(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Returns the names that nodes read, in their branches too."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                read |= names_read(attribute.g.node)
    return read
