"""What an ONNX file says, as far as it has to be known before it is run: a reduced schema for the protobuf runtime.

The files are read by the runtime that onnxruntime itself depends on, with those fields of onnx.proto that
`edgebert.bundle.graph_check` looks at; all others are skipped. The descriptor lives in a pool of its own, so that it
meets neither `onnx` nor anybody else's in the same process. Where the real schema has an enumeration this one has an
integer, so that a value nobody knows is seen and not dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, cast

from edgebert.errors import BundleError

_PACKAGE = "edgebert.graph"

_Kind = str | list[str]
"""A scalar type of protobuf, or a message of this schema; in a list where it may come many times."""

_MESSAGES: dict[str, dict[str, tuple[int, _Kind]]] = {
    "Model": {
        "ir_version": (1, "int64"),
        "graph": (7, "Graph"),
        "opset_import": (8, ["OperatorSet"]),
        "metadata_props": (14, ["Entry"]),
        "training_info": (20, ["Empty"]),
        "functions": (25, ["Empty"]),
    },
    "OperatorSet": {"domain": (1, "string"), "version": (2, "int64")},
    "Entry": {"key": (1, "string")},
    "Empty": {},
    "Graph": {
        "node": (1, ["Node"]),
        "initializer": (5, ["Tensor"]),
        "input": (11, ["Value"]),
        "output": (12, ["Value"]),
        "sparse_initializer": (15, ["SparseTensor"]),
    },
    "Node": {"op_type": (4, "string"), "attribute": (5, ["Attribute"]), "domain": (7, "string")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, ["Tensor"]),
        "graphs": (11, ["Graph"]),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, ["SparseTensor"]),
    },
    "Tensor": {
        "dims": (1, ["int64"]),
        "data_type": (2, "int32"),
        "float_data": (4, ["float"]),
        "int32_data": (5, ["int32"]),
        "string_data": (6, ["bytes"]),
        "int64_data": (7, ["int64"]),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "double_data": (10, ["double"]),
        "uint64_data": (11, ["uint64"]),
        "external_data": (13, ["Empty"]),
        "data_location": (14, "int32"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Value": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, ["Dimension"])},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
}


class Tensor(Protocol):
    """A constant: its shape, its type, and its numbers in one of several forms; `name` is empty in attributes."""

    name: str
    dims: Sequence[int]
    data_type: int
    raw_data: bytes
    external_data: Sequence[object]
    data_location: int


class SparseTensor(Protocol):
    """A constant that is mostly zeros."""

    values: Tensor
    indices: Tensor


class Attribute(Protocol):
    """What of a node's attribute may hold constants or graphs."""

    tensors: Sequence[Tensor]
    graphs: Sequence[Graph]
    sparse_tensors: Sequence[SparseTensor]
    t: Tensor
    g: Graph
    sparse_tensor: SparseTensor

    def HasField(self, name: str) -> bool:  # noqa: N802
        """Says whether `t`, `g` or `sparse_tensor` is there."""
        ...


class Node(Protocol):
    """A call of an operator."""

    op_type: str
    domain: str
    attribute: Sequence[Attribute]


class Dimension(Protocol):
    """One axis of a shape: a number, or 0 where it is named or unknown."""

    dim_value: int
    dim_param: str


class Shape(Protocol):
    """The axes of a value."""

    dim: Sequence[Dimension]


class TensorType(Protocol):
    """What numbers a value has, as ONNX counts types, and its shape where it is stated."""

    elem_type: int
    shape: Shape

    def HasField(self, name: str) -> bool:  # noqa: N802
        """Says whether `shape` is there."""
        ...


class Type(Protocol):
    """The type of a value; empty where it is no tensor."""

    tensor_type: TensorType


class Value(Protocol):
    """An input or output of a graph."""

    name: str
    type: Type


class Graph(Protocol):
    """Nodes, constants, inputs and outputs."""

    node: Sequence[Node]
    initializer: Sequence[Tensor]
    sparse_initializer: Sequence[SparseTensor]
    input: Sequence[Value]
    output: Sequence[Value]


class OperatorSet(Protocol):
    """A version of the operators of a domain; "" is ONNX's own."""

    domain: str
    version: int


class Entry(Protocol):
    """A fact about the file, by its name."""

    key: str


class Model(Protocol):
    """A whole file."""

    ir_version: int
    graph: Graph
    opset_import: Sequence[OperatorSet]
    metadata_props: Sequence[Entry]
    training_info: Sequence[object]
    functions: Sequence[object]


def parse_model(data: bytes, *, where: str) -> Model:
    """Returns what the bytes of an ONNX file say, in the reduced schema.

    Args:
        data: The bytes.
        where: What messages call the file.

    Raises:
        BundleError: They are no protobuf message, or one that is nested deeper than protobuf allows.
    """
    message, decode_error = _model_class()
    try:
        return cast(Model, message.FromString(data))
    except (decode_error, RecursionError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{where}: not an ONNX graph ({reason}); export the bundle again.") from error


@cache
def _model_class() -> tuple[Any, type[Exception]]:
    """Builds the schema; protobuf is imported here, so that what reads no graph does not pay for it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError

    file = descriptor_pb2.FileDescriptorProto(name="edgebert/graph.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            is_repeated, kind = isinstance(kind, list), kind[0] if isinstance(kind, list) else kind
            declared = message.field.add(name=field, number=number)
            declared.label = declared.LABEL_REPEATED if is_repeated else declared.LABEL_OPTIONAL
            if kind in _MESSAGES:
                declared.type, declared.type_name = declared.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                declared.type = getattr(declared, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model")), DecodeError
