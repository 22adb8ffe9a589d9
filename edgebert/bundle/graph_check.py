"""What a graph of a bundle must be before ONNX Runtime sees it: one function a rule, each saying what breaks it.

A hash says that a file is the one its bundle was made with; these rules say that the bundle does not lie about it, and
that nothing in it reaches beyond its own bytes: no other file, no library, no address in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from edgebert.bundle.graph_schema import Attribute, Graph, Model, Node, SparseTensor, Tensor, Value, parse_model
from edgebert.bundle.graph_weights import set_weights_aside
from edgebert.bundle.manifest import ADVICE, FileFacts, Manifest
from edgebert.errors import BundleError

MAX_REST_BYTES = 8 * 1024 * 1024
"""Most bytes of a graph without its large weights; the largest of ours, a whole program of 24 layers, has 0.3 MB."""

MAX_NODES = 50_000
MAX_DEPTH = 8
"""Most graphs inside each other; ours have two."""

IR_VERSIONS = (8, 13)

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Whose operators may be called: those that ONNX Runtime brings. Others that begin like these are of libraries."""

_READS_FILES = frozenset({"EPContext"})
"""Operators that name a file or hold compiled code, in domains that are else allowed."""

_ORT_MARK = b"ORTM"
"""What stands in bytes 4 to 7 of ONNX Runtime's own format, which it takes such a file for, whatever else it is."""

_RUNTIME_SETTINGS = "ort_config"
"""Where a file may hold settings for ONNX Runtime."""

FLOAT, INT64, STRING, BOOL, FLOAT16 = 1, 7, 8, 9, 10
"""Types, as ONNX counts them."""

# How many bits a number of each type takes, and in which field it stands where it is not in raw_data.
_BITS = {
    **dict.fromkeys((2, 3, BOOL, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, FLOAT16, 16), 16),
    **dict.fromkeys((FLOAT, 6, 12), 32),
    **dict.fromkeys((INT64, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    15: 128,
}
_FIELDS = {FLOAT: "float_data", 14: "float_data", 11: "double_data", 15: "double_data", INT64: "int64_data"}
_FIELDS |= {STRING: "string_data", 12: "uint64_data", 13: "uint64_data"}
_PARTS_OF_A_NUMBER = {14: 2, 15: 2}


@dataclass
class _Contents:
    """Everything in a file, with its subgraphs'.

    `tensors` has constants with what messages call them and the bytes of their `raw_data`.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: list[tuple[str, Tensor, int]] = field(default_factory=list)
    depth: int = 1


@dataclass(frozen=True)
class _Checked:
    """A file that is checked, and what the manifest says of it."""

    model: Model
    contents: _Contents
    path: str
    facts: FileFacts
    manifest: Manifest


def check_graph(data: bytes, path: str, manifest: Manifest, *, where: str) -> None:
    """Refuses a graph that breaks a rule.

    Args:
        data: The bytes of the file.
        path: Its path in the bundle.
        manifest: The bundle's manifest.
        where: What messages call the file.

    Raises:
        BundleError: It does.
    """
    if data[4:8] == _ORT_MARK:
        raise BundleError(f"{where}: expected an ONNX file, got one in ONNX Runtime's own format; {ADVICE}")
    rest, weight_bytes = set_weights_aside(data)
    if len(rest) > MAX_REST_BYTES:
        raise BundleError(
            f"{where}: expected at most {MAX_REST_BYTES} bytes besides its weights, got {len(rest)}; {ADVICE}"
        )
    model = parse_model(rest, where=where)
    try:
        contents = _contents_of(model, weight_bytes)
    except _TooMuchError as error:
        raise BundleError(f"{where}: {error}; {ADVICE}") from error
    checked = _Checked(model, contents, path, manifest.files[path], manifest)
    for rule in RULES:
        if (problem := rule(checked)) is not None:
            raise BundleError(f"{where}: {problem}; {ADVICE}")


def graph_names(data: bytes, *, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a graph's inputs and of its outputs, in order.

    Raises:
        BundleError: It is no ONNX file.
    """
    graph = parse_model(set_weights_aside(data).rest, where=where).graph
    return _names(graph.input), _names(graph.output)


def _is_of_these_versions(checked: _Checked) -> str | None:
    low, high = IR_VERSIONS
    if not low <= checked.model.ir_version <= high:
        return f"expected ir_version {low} to {high}, got {checked.model.ir_version}"
    own = [entry.version for entry in checked.model.opset_import if entry.domain in ("", "ai.onnx")]
    if own != [checked.manifest.opset]:
        return f"expected opset {checked.manifest.opset}, as the manifest says, got {own}"
    return None


def _has_known_domains_only(checked: _Checked) -> str | None:
    nodes = checked.contents.nodes
    for domain in {entry.domain for entry in checked.model.opset_import} | {node.domain for node in nodes}:
        if domain not in DOMAINS:
            return f"expected operators of ONNX and com.microsoft only, got the domain {domain[:100]!r}"
    return None


def _brings_no_functions(checked: _Checked) -> str | None:
    if checked.model.functions:
        return "expected no functions of its own: an operator could be called what it is not"
    return None


def _is_not_for_training(checked: _Checked) -> str | None:
    return "expected no graphs for training" if checked.model.training_info else None


def _brings_no_settings(checked: _Checked) -> str | None:
    if any(entry.key == _RUNTIME_SETTINGS for entry in checked.model.metadata_props):
        return f"expected no settings for ONNX Runtime, got {_RUNTIME_SETTINGS}"
    return None


def _reads_no_files(checked: _Checked) -> str | None:
    for node in checked.contents.nodes:
        if node.op_type in _READS_FILES:
            return f"expected no operator that reads files or compiled code, got {node.op_type}"
    return None


def _has_its_own_data(checked: _Checked) -> str | None:
    for name, tensor, _ in checked.contents.tensors:
        if tensor.data_location or tensor.external_data:
            return f"{name} has external data; expected all of a graph's numbers in its own file"
    return None


def _has_all_its_data(checked: _Checked) -> str | None:
    for name, tensor, raw_bytes in checked.contents.tensors:
        if (problem := _size_problem(tensor, raw_bytes)) is not None:
            return f"{name} {problem}"
    return None


def _has_the_names_of_the_manifest(checked: _Checked) -> str | None:
    graph, facts = checked.model.graph, checked.facts
    for what, got, expected in (
        ("inputs", _names(graph.input), facts.inputs),
        ("outputs", _names(graph.output), facts.outputs),
    ):
        if got != expected:
            return f"expected the {what} {_listed(expected)}, as the manifest says, got {_listed(got)}"
    return None


def _has_the_shapes_of_the_manifest(checked: _Checked) -> str | None:
    """Compares what the graph states of its inputs and outputs; a size it leaves open fits."""
    widths, types = _widths(checked), _types(checked.manifest)
    for value in (*checked.model.graph.input, *checked.model.graph.output):
        name = value.name.removesuffix("_out")
        stated = value.type.tensor_type
        if name in types and stated.elem_type not in (0, types[name]):
            return f"{value.name}: expected numbers of ONNX type {types[name]}, got {stated.elem_type}"
        axes = [axis.dim_value for axis in stated.shape.dim]
        if name in widths and axes and axes[-1] not in (0, widths[name]):
            return f"{value.name}: expected a last axis of {widths[name]}, as the manifest says, got {axes[-1]}"
    return None


RULES: tuple[Callable[[_Checked], str | None], ...] = (
    _brings_no_functions,
    _is_not_for_training,
    _brings_no_settings,
    _has_its_own_data,
    _has_known_domains_only,
    _reads_no_files,
    _is_of_these_versions,
    _has_all_its_data,
    _has_the_names_of_the_manifest,
    _has_the_shapes_of_the_manifest,
)


def _widths(checked: _Checked) -> dict[str, int]:
    """Returns how long the last axis of a value is, for those whose length the manifest tells."""
    facts, labels = checked.manifest.encoder, len(checked.manifest.labels)
    widths = {"hidden": facts.hidden_size, "attended": facts.hidden_size, "logits": labels, "probabilities": labels}
    widths |= {"path": facts.layers, "exit_share": facts.layers, "exit_log_share": facts.layers}
    chosen = [step for step in checked.manifest.program if step.graph == checked.path and step.choice is not None]
    return widths | {step.choice: step.choices for step in chosen if step.choice is not None}


def _types(manifest: Manifest) -> dict[str, int]:
    state = FLOAT16 if manifest.precision == "fp16" else FLOAT
    ids = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "exit_layer"), INT64)
    return {**ids, "hidden": state, "attended": state, "logits": FLOAT, "probabilities": FLOAT, "path": BOOL}


def _size_problem(tensor: Tensor, raw_bytes: int) -> str | None:
    """Says how a constant has more or less data than its shape wants."""
    kind, dims = tensor.data_type, list(tensor.dims)
    bits = _BITS.get(kind)
    if bits is None and kind != STRING:
        return f"is of the unknown type {kind}"
    if min(dims, default=0) < 0:
        return f"has the shape {dims}"
    numbers = math.prod(dims)
    if raw_bytes and bits is not None:
        expected, got, unit = -(-numbers * bits // 8), raw_bytes, "bytes"
    else:
        per_entry = 8 // bits if bits is not None and bits < 8 else 1
        expected = -(-numbers // per_entry) * _PARTS_OF_A_NUMBER.get(kind, 1)
        got, unit = len(getattr(tensor, _FIELDS.get(kind, "int32_data"))), "numbers"
    return None if expected == got else f"has {got} {unit}; expected {expected} of the shape {dims[:8]}"


class _TooMuchError(Exception):
    """A file has more of something than any of ours."""


def _contents_of(model: Model, weight_bytes: dict[int, int] | None) -> _Contents:
    """Collects what a file holds.

    Args:
        model: The file, without its large weights.
        weight_bytes: See `edgebert.bundle.graph_weights.Parted`.

    Raises:
        _TooMuchError: It is larger or nested deeper than any of ours.
    """
    contents = _Contents()
    for number, tensor in enumerate(model.graph.initializer):
        raw_bytes = len(tensor.raw_data) if weight_bytes is None else weight_bytes.get(number, 0)
        contents.tensors.append((f"initializer {tensor.name[:100]!r}", tensor, raw_bytes))
    _collect(model.graph, contents, depth=1)
    return contents


def _collect(graph: Graph, contents: _Contents, *, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _TooMuchError(f"expected at most {MAX_DEPTH} graphs inside each other")
    if len(contents.nodes) + len(graph.node) > MAX_NODES:
        raise _TooMuchError(f"expected at most {MAX_NODES} nodes, got more")
    contents.nodes.extend(graph.node)
    tensors = list(_parts(graph.sparse_initializer, "sparse initializer"))
    for node in graph.node:
        for attribute in node.attribute:
            tensors += _constants(attribute, node)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                tensors += (("initializer of a subgraph", tensor) for tensor in inner.initializer)
                _collect(inner, contents, depth=depth + 1)
    contents.tensors += ((name, tensor, len(tensor.raw_data)) for name, tensor in tensors)


def _constants(attribute: Attribute, node: Node) -> Iterator[tuple[str, Tensor]]:
    """Gives the constants in an attribute, with what messages call them."""
    name = f"an attribute of {node.op_type[:100]}"
    if attribute.HasField("t"):
        yield name, attribute.t
    yield from ((name, tensor) for tensor in attribute.tensors)
    if attribute.HasField("sparse_tensor"):
        yield from _parts([attribute.sparse_tensor], name)
    yield from _parts(attribute.sparse_tensors, name)


def _parts(tensors: Iterable[SparseTensor], name: str) -> Iterator[tuple[str, Tensor]]:
    for tensor in tensors:
        yield f"values of {name}", tensor.values
        yield f"indices of {name}", tensor.indices


def _names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def _listed(names: tuple[str, ...]) -> str:
    return f"({', '.join(names)[:200]})"
