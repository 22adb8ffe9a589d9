"""Reads a manifest and refuses one that contradicts itself: one function a rule, each saying what breaks it.

Reading decodes the text strictly, writes it again and compares the bytes, so that no two files mean the same manifest
and any changed byte is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from edgebert.bundle.manifest import (
    ADVICE,
    FORMAT_VERSION,
    MANIFEST_NAME,
    NO_GRAPH,
    SINGLE_NAME,
    STATES,
    Manifest,
    Step,
    encode_manifest,
)
from edgebert.errors import BundleError

_T = TypeVar("_T")

CARD_NAME = "README.md"
TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "config.yaml"
SAMPLES_NAME = "samples.json"
WHOLE_MODEL_NAME = "onnx/model.onnx"
HUGGING_FACE_NAME = "config.json"
"""What libraries of Hugging Face read beside a whole model."""

_MEBIBYTE = 1024 * 1024
MAX_CARD_BYTES = _MEBIBYTE
_MOST_BYTES = {
    CARD_NAME: MAX_CARD_BYTES,
    CONFIG_NAME: _MEBIBYTE,
    HUGGING_FACE_NAME: _MEBIBYTE,
    SAMPLES_NAME: _MEBIBYTE,
    TOKENIZER_NAME: 128 * _MEBIBYTE,
}
"""The most bytes of files that are no graphs; a graph's are protobuf's own limit, which the type of sizes has."""

_PATH = re.compile(r"[a-z0-9_][a-z0-9_.\-]*(/[a-z0-9_][a-z0-9_.\-]*)?")
_GRAPH = re.compile(r"graphs/[a-z0-9_]+\.onnx")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
OPSETS = (18, 23)

_IDS = frozenset({"input_ids", "attention_mask", "token_type_ids"})

# The steps of one layer as a word, a letter a step. A layer is whole or in parts; what is chosen or dropped comes
# between the parts, and what answers comes last.
_LETTERS = {
    "embed": "E",
    "plan": "P",
    "gate": "g",
    "select": "s",
    "drop": "d",
    "restore": "r",
    "exit": "x",
    "head": "h",
}
_PART_LETTERS = {"whole": "L", "fused": "F", "attention": "A", "feed_forward": "B"}
_START = re.compile(r"PE|EP?")
_LAYER = re.compile(r"g?(L|s?F?A[sd]*B)r?x?h?")

_MAKES = {"embed": [{"hidden"}], "gate": [{"include"}], "plan": [{"include"}, {"exit_share", "exit_log_share"}]}
_MAKES |= {"exit": [{"probabilities"}, {"logits"}], "head": [{"logits"}]}
"""What a step of a kind must give, or one of several things."""


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Reads and checks the bytes of a manifest.

    Raises:
        BundleError: It is no manifest, of another version, changed since it was written, or contradicts itself.
    """
    name = f"{where}/{MANIFEST_NAME}"
    version = _decode(data, _Version, name).format_version
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{name}: expected format_version {FORMAT_VERSION}, got {version}; "
            "export the bundle again or use a matching edgebert."
        )
    manifest = _decode(data, Manifest, name)
    if _encode(manifest) != data:
        raise BundleError(f"{name}: changed since it was written (its digest differs); {ADVICE}")
    for rule in RULES:
        if (problem := rule(manifest)) is not None:
            raise BundleError(f"{name}: {problem}; {ADVICE}")
    return manifest


class _Version(msgspec.Struct):
    format_version: int


def _decode(data: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{name}: not a manifest ({error}); {ADVICE}") from error


def _encode(manifest: Manifest) -> bytes | None:
    """Returns the canonical bytes; None for what nests deeper than it could have been written."""
    try:
        return encode_manifest(manifest)
    except RecursionError:
        return None


def _has_allowed_paths(manifest: Manifest) -> str | None:
    for path in manifest.files:
        if path != CARD_NAME and (not _PATH.fullmatch(path) or ".." in path):
            return f"{path!r} is not an allowed path inside a bundle"
    return None


def _has_sizes_and_hashes(manifest: Manifest) -> str | None:
    for path, facts in manifest.files.items():
        if path in _MOST_BYTES and facts.bytes > _MOST_BYTES[path]:
            return f"{path}: expected at most {_MOST_BYTES[path]} bytes, got {facts.bytes}"
        if not _SHA256.fullmatch(facts.sha256):
            return f"{path}: expected a sha256 of 64 hexadecimal digits, got {facts.sha256[:80]!r}"
    return None


def _has_no_unused_files(manifest: Manifest) -> str | None:
    used = {*_MOST_BYTES, WHOLE_MODEL_NAME, SINGLE_NAME, *(step.graph for step in manifest.program)}
    for path in manifest.files:
        if path not in used:
            return f"{path} is used by no step of the program, and is no other file of a bundle"
    return None


def _has_a_sound_encoder(manifest: Manifest) -> str | None:
    facts = manifest.encoder
    if facts.pad_token_id >= facts.vocabulary_size:
        return f"expected a pad_token_id below {facts.vocabulary_size}, got {facts.pad_token_id}"
    if manifest.precision not in PRECISIONS:
        return f"expected a precision of {', '.join(PRECISIONS)}, got {manifest.precision!r}"
    if not OPSETS[0] <= manifest.opset <= OPSETS[1]:
        return f"expected an opset of {OPSETS[0]} to {OPSETS[1]}, got {manifest.opset}"
    return None if manifest.labels else "expected labels, got none"


def _has_its_points(manifest: Manifest) -> str | None:
    if "default" not in manifest.operating_points:
        return "there is no operating point named default"
    for name, point in (*manifest.operating_points.items(), ("rule", manifest.rule)):
        if point.policy not in manifest.policies:
            return f"{name} has the policy {point.policy!r}, which is not among its policies"
    return None


def _reads_what_is_there(manifest: Manifest) -> str | None:
    known = set(_IDS)
    for number, step in enumerate(manifest.program):
        reads = {*step.inputs, *([step.choice] if step.choice and step.kind != "select" else [])}
        if missing := sorted(reads - known):
            return f"{_called(number, step)}: no step before it makes {', '.join(missing)}"
        known.update(step.outputs, [step.choice] if step.choice else [])
    return None


def _makes_nothing_in_vain(manifest: Manifest) -> str | None:
    """Looks for values of layers that no step reads: a step that should read them is missing."""
    unread: dict[str, str] = {}
    for number, step in enumerate(manifest.program):
        for name in step.inputs:
            unread.pop(name, None)
        made = set(step.outputs) - {*STATES, "attention_mask"} if step.kind in ("embed", "layer") else set()
        if lost := sorted(made & set(unread)):
            return f"{unread[lost[0]]}: no step reads the {lost[0]} that it makes"
        unread.update(dict.fromkeys(made, _called(number, step)))
    return f"{unread[min(unread)]}: no step reads the {min(unread)} that it makes" if unread else None


def _links_to_what_every_row_runs(manifest: Manifest) -> str | None:
    owner: Step | None = None
    for number, step in enumerate(manifest.program):
        if step.kind in NO_GRAPH:
            continue
        if step.graph is not None:
            owner = step
        elif owner is None or (_can_skip(manifest) and owner.kind == "layer"):
            return f"{_called(number, step)}: linked into a graph that not every row runs"
        elif missing := sorted(set(step.inputs) - set(owner.outputs)):
            return f"{_called(number, step)}: the graph it is linked into does not give {', '.join(missing)}"
    return None


def _ends_with_an_answer(manifest: Manifest) -> str | None:
    last = manifest.program[-1] if manifest.program else None
    if last is None or last.kind not in ("exit", "head"):
        return "the program must end with an exit or a head"
    if last.layer != manifest.encoder.layers:
        return f"the program must end after layer {manifest.encoder.layers}, ends after {last.layer}"
    return None


def _has_every_layer_in_order(manifest: Manifest) -> str | None:
    order = [step.layer for step in manifest.program]
    if order != sorted(order):
        return "the layers of the program's steps must ascend"
    words = ["" for _ in range(manifest.encoder.layers + 1)]
    for step in manifest.program:
        words[step.layer] += _PART_LETTERS[step.part] if step.kind == "layer" else _LETTERS[step.kind]
    for layer, word in enumerate(words):
        if not (_LAYER if layer else _START).fullmatch(word):
            kinds = [step.kind for step in manifest.program if step.layer == layer]
            return f"layer {layer} of {manifest.encoder.layers} cannot be run as {', '.join(kinds) or 'no step'}"
    return None


def _has_a_layer_there_is(step: Step, manifest: Manifest) -> str | None:
    layers = manifest.encoder.layers
    return None if step.layer <= layers else f"expected a layer of 0 to {layers}"


def _has_its_graph(step: Step, manifest: Manifest) -> str | None:
    if step.graph is None:
        return None
    if step.kind in NO_GRAPH:
        return "the runtime does this by itself; expected no graph"
    facts = manifest.files.get(step.graph)
    if facts is None:
        return f"its graph {step.graph} is not among the files"
    if not _GRAPH.fullmatch(step.graph):
        return f"expected a graph called graphs/NAME.onnx, got {step.graph}"
    given = tuple(f"{name}_out" if name in step.inputs else name for name in step.outputs)
    if (facts.inputs, facts.outputs) != (step.inputs, given):
        return f"its graph {step.graph} takes or gives other values than the step"
    return None


def _makes_what_its_kind_makes(step: Step, manifest: Manifest) -> str | None:
    made = set(step.outputs or step.inputs)  # of a linked step, what it reads is what its graph gave for it
    if step.kind in _MAKES and not any(needed <= made for needed in _MAKES[step.kind]):
        return f"expected it to make {' or '.join(' and '.join(sorted(needed)) for needed in _MAKES[step.kind])}"
    return None


def _has_choice_and_pieces(step: Step, manifest: Manifest) -> str | None:
    if (step.choice is None) != (step.choices < 1) or (step.kind == "select" and step.choice is None):
        return "a choice and the number of its pieces go together"
    return None


def _has_parts_to_stand_for(step: Step, manifest: Manifest) -> str | None:
    kinds = {other.kind for other in manifest.program if other.layer == step.layer}
    if step.part == "fused" and not kinds & {"drop", "select"}:
        return "a fused layer stands in for parts that drop tokens or have pieces"
    return None


def _is_whole_where_layers_are_skipped(step: Step, manifest: Manifest) -> str | None:
    if _can_skip(manifest) and (step.part != "whole" or step.kind in ("select", "drop")):
        return "a program that leaves layers out must have them whole"
    return None


def _can_skip(manifest: Manifest) -> bool:
    return any(step.kind in ("plan", "gate") for step in manifest.program)


def _called(number: int, step: Step) -> str:
    return f"program step {number} ({step.kind} of layer {step.layer})"


def _each_step(rule: Callable[[Step, Manifest], str | None]) -> Callable[[Manifest], str | None]:
    """Makes a rule about a program of a rule about its steps."""

    def check(manifest: Manifest) -> str | None:
        for number, step in enumerate(manifest.program):
            if (problem := rule(step, manifest)) is not None:
                return f"{_called(number, step)}: {problem}"
        return None

    return check


RULES: tuple[Callable[[Manifest], str | None], ...] = (
    _has_allowed_paths,
    _has_sizes_and_hashes,
    _has_a_sound_encoder,
    _has_its_points,
    _each_step(_has_a_layer_there_is),
    _each_step(_has_its_graph),
    _reads_what_is_there,
    _each_step(_has_choice_and_pieces),
    _each_step(_makes_what_its_kind_makes),
    _each_step(_has_parts_to_stand_for),
    _each_step(_is_whole_where_layers_are_skipped),
    _links_to_what_every_row_runs,
    _ends_with_an_answer,
    _makes_nothing_in_vain,
    _has_every_layer_in_order,
    _has_no_unused_files,
)
