"""The manifest of a bundle: a small program, its rule, and facts about every file. Stored as `edgebert.json`.

The file holds the canonical text of the manifest and nothing else: reading decodes it strictly, writes it again and
compares the bytes, so that no two files mean the same manifest and any changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BundleError

FORMAT_VERSION = 4
MANIFEST_NAME = "edgebert.json"
SINGLE_NAME = "onnx/single.onnx"
STATES = ("hidden", "attended")
"""Values that are hidden states, float [rows, tokens, hidden]."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024

StepKind = Literal["embed", "plan", "gate", "select", "layer", "drop", "restore", "exit", "head"]
Part = Literal["whole", "fused", "attention", "feed_forward"]
NO_GRAPH = ("drop", "restore")
"""Kinds of steps that the runtime does by itself."""

Knobs = dict[str, bool | float | int | str | None]

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")


class Macs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiply-accumulates of one row of T tokens: row + token * T + token_pair * T^2."""

    row: int = 0
    token: int = 0
    token_pair: int = 0

    def of(self, lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """Returns the multiply-accumulates of rows of these lengths in tokens, float64 [rows]."""
        length = np.asarray(lengths, np.float64)
        return self.row + self.token * length + self.token_pair * length**2


def total(parts: Iterable[Macs]) -> Macs:
    """Returns what some steps cost together."""
    every = list(parts)
    return Macs(
        row=sum(macs.row for macs in every),
        token=sum(macs.token for macs in every),
        token_pair=sum(macs.token_pair for macs in every),
    )


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of the program.

    Attributes:
        kind: What the engine does.
        layer: The layer it belongs to, counted from 1; 0 before the first.
        graph: Path of its graph in the bundle. None: it was linked into the graph before it, and `inputs` are what
            that graph gave for it.
        inputs: Values it reads.
        outputs: Values it makes.
        macs: What it costs every row it runs on.
        part: Which part of its layer a `layer` step is. A layer in parts has one `attention` and one `feed_forward`;
            before them it may have all of it as one graph, `fused`, to run in their place when nothing comes between.
        choice: The value, bool [rows, choices], that says which of its optional pieces run: a `select` step makes it,
            a `layer` step reads it.
        choices: How many pieces there are to choose from.
        each: What one chosen piece costs a row.
    """

    kind: StepKind
    layer: int
    graph: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: Macs = Macs()
    part: Part = "whole"
    choice: str | None = None
    choices: int = 0
    each: Macs = Macs()


class EncoderFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The encoder's shape and what it accepts; lengths in tokens.

    Segment ids are read where `token_types` is 2 or more. `embedding_size` is the width of embeddings that are widened
    to `hidden_size`, None where they are not; `shared_layers` says how many consecutive layers share their weights.
    """

    family: str
    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    vocabulary_size: int
    token_types: int
    pad_token_id: int
    max_length: int
    activation: str = "gelu"
    embedding_size: int | None = None
    shared_layers: int = 1


class Guarantee(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calibration promises about texts like its own: with probability 1 - `delta`, the risk is at most `epsilon`.

    Attributes:
        procedure: How the knobs were chosen: `learn_then_test` or `conformal`.
        risk: What is bounded: `metric_drop`, the metric lost against full depth, or `disagreement`, the share of
            texts answered otherwise than at full depth; 0 to 1.
        epsilon: The bound, 0 to 1.
        delta: The probability, over draws of the calibration texts, that the bound is broken, 0 to 1. None: the bound
            holds for the risk's average over such draws.
        texts: How many texts it was calibrated on.
    """

    procedure: str
    risk: str
    epsilon: float
    delta: float | None
    texts: int


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy with its knobs, under a name.

    Attributes:
        policy: A file in `edgebert/policies`.
        knobs: Its knobs.
        chosen_on: The data and the number of rows it was chosen on; empty for a method's own rule.
        metric: The metric there, at most 1; None when not measured.
        mean_layers: The mean number of layers there; None when not measured.
        cost_ratio: Multiply-accumulates there, over those of all layers; None when not measured.
        latency_ms: Mean wall time of a text there, alone in its batch, on the machine that measured; None when not
            measured.
        budget: What it was asked to meet, such as `speedup=2`; empty when nothing.
        guarantee: What its calibration promises; None: nothing.
    """

    policy: str
    knobs: Knobs
    chosen_on: str = ""
    metric: float | None = None
    mean_layers: float | None = None
    cost_ratio: float | None = None
    latency_ms: float | None = None
    budget: str = ""
    guarantee: Guarantee | None = None


class FileFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the bundle; `inputs` and `outputs` are a graph's, else empty."""

    sha256: str
    bytes: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How torch and the bundle compared when it was made.

    Attributes:
        samples: Random inputs compared.
        max_difference: Largest absolute difference of an answer: of a probability, or of a regression's value,
            divided by the largest value where that is more than 1.
        graph_max_difference: Largest absolute difference of any value any single graph gave; an answer's, as above.
        decisions: Decisions of the method's rule that were compared: label and exit layer of each input.
        differing_decisions: How many of them differed outside the margin.
        within_margin: How many inputs lay too near a decision's border to be compared.
        tolerance: What the differences had to stay below.
    """

    samples: int
    max_difference: float
    graph_max_difference: float
    decisions: int
    differing_decisions: int
    within_margin: int
    tolerance: float


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One try at mixed precision: what stayed fp32, and what that cost in accuracy.

    Attributes:
        kept: The graphs left in fp32, or their operators, by path.
        metric: The metric, at most 1.
        drop_points: How much lower than that of the source bundle, in hundredths.
    """

    kept: tuple[str, ...]
    metric: float
    drop_points: float


class Quantization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the bundle was quantized.

    Attributes:
        source_digest: The `graphs_digest` of the fp32 bundle.
        backend: A file in `edgebert/quantize`.
        mode: `dynamic`, `static` or `weight-only`.
        settings: The effective settings.
        graphs: The precision of every graph, by path.
        calibration: The data it was calibrated on: name, number of rows, sha256; empty when none was needed.
        calibration_texts: How many texts of it were run.
        evaluation: The data the drop was measured on, file by file, likewise; empty when none was measured.
        trials: What was measured to decide which graphs stay fp32, in order; the last is this bundle.
    """

    source_digest: str
    backend: str
    mode: str
    settings: dict[str, Any]
    graphs: dict[str, str]
    calibration: str = ""
    calibration_texts: int = 0
    evaluation: str = ""
    trials: tuple[Trial, ...] = ()


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the bundle came from: versions of the packages that made it, and the training's seed."""

    versions: dict[str, str]
    seed: int | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the runtime knows about a model.

    Attributes:
        format_version: Of this format.
        method: The method's name.
        method_settings: Its settings.
        task: Name of a file in `edgebert/tasks`.
        task_settings: Its settings.
        labels: The label names, in the order of the scores; of a regression, the name of its one value; of question
            answering, those of a token's two scores.
        encoder: The encoder's shape.
        program: The steps, in order.
        rule: The method's own rule, whose full-depth answer the policy `never` gives.
        policies: The policies that make sense for the method.
        operating_points: Named policies; `default` is always there.
        precision: Of the weights: `fp32`, `fp16`, `int8` or `int4`; where it is mixed, that of most of them.
        opset: ONNX operator set of the graphs.
        files: Every file but this one, by path.
        parity: How torch and the bundle compared.
        provenance: Where it came from.
        quantization: How it was quantized; None: it was not.
        digest: sha256 of this manifest's canonical text with an empty digest.
    """

    format_version: int
    method: str
    method_settings: dict[str, Any]
    task: str
    task_settings: dict[str, Any]
    labels: tuple[str, ...]
    encoder: EncoderFacts
    program: tuple[Step, ...]
    rule: OperatingPoint
    policies: tuple[str, ...]
    operating_points: dict[str, OperatingPoint]
    precision: str
    opset: int
    files: dict[str, FileFacts]
    provenance: Provenance
    parity: Parity | None = None
    quantization: Quantization | None = None
    digest: str = ""

    @property
    def graphs_digest(self) -> str:
        """sha256 over the paths and sha256 of all graphs: what it computes, however it is tuned and described.

        The single-file form is made of them and does not count.
        """
        files = self.files.items()
        graphs = sorted((path, f.sha256) for path, f in files if path.endswith(".onnx") and path != SINGLE_NAME)
        return hashlib.sha256("".join(f"{path} {sha256}\n" for path, sha256 in graphs).encode()).hexdigest()

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers (from 1) after which a row can be answered; none for a static program."""
        return exit_layers_of([(step.kind, step.layer) for step in self.program])


def exit_layers_of(steps: Sequence[tuple[StepKind, int]]) -> tuple[int, ...]:
    """Returns the layers (from 1) after which a program, given as kinds and layers, can answer a row.

    Those with an exit; in a planned program those with a head, and all of them where layers can be left out anywhere.
    """
    kinds = {kind for kind, _ in steps}
    heads = tuple(layer for kind, layer in steps if kind == "head")
    if "exit" in kinds:
        return tuple(layer for kind, layer in steps if kind == "exit")
    if not kinds & {"plan", "gate"}:
        return ()
    return heads if len(heads) > 1 else tuple(range(1, max(heads, default=0) + 1))


def encode_manifest(manifest: Manifest) -> bytes:
    """Returns the canonical bytes of a manifest, its digest filled in."""
    digest = hashlib.sha256(_text(msgspec.structs.replace(manifest, digest=""))).hexdigest()
    return _text(msgspec.structs.replace(manifest, digest=digest))


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Reads and checks the bytes of a manifest.

    Raises:
        BundleError: It is no manifest, of another version, changed since it was written, or contradicts itself.
    """
    name = f"{where}/{MANIFEST_NAME}"
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{name}: not a manifest ({error}); export the bundle again.") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{name}: expected format_version {FORMAT_VERSION}, got {version}; "
            "export the bundle again or use a matching edgebert."
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{name}: {error}; export the bundle again.") from error
    if encode_manifest(manifest) != data:
        raise BundleError(f"{name}: changed since it was written (its digest differs); export the bundle again.")
    _check(manifest, name)
    return manifest


class _Version(msgspec.Struct):
    format_version: int


def _text(manifest: Manifest) -> bytes:
    # Once through plain JSON first, so that a number has the type it will have when it is read again.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"


def _check(manifest: Manifest, name: str) -> None:
    """Refuses a program whose steps do not fit together, and paths that leave the bundle."""
    known = {"input_ids", "attention_mask", "token_type_ids"}
    can_skip = any(step.kind in ("plan", "gate") for step in manifest.program)
    owner: Step | None = None
    for index, step in enumerate(manifest.program):
        what = f"{name}: program step {index} ({step.kind} of layer {step.layer})"
        reads = {*step.inputs, *([step.choice] if step.choice and step.kind != "select" else [])}
        missing = sorted(reads - known)
        if missing:
            raise BundleError(f"{what}: no step before it makes {', '.join(missing)}.")
        _check_step(step, manifest, can_skip=can_skip, what=what)
        known.update(step.outputs, [step.choice] if step.choice else [])
        if step.kind not in NO_GRAPH:
            owner = step if step.graph is not None else owner
            if step.graph is None and (owner is None or (can_skip and owner.kind == "layer")):
                raise BundleError(f"{what}: linked into a graph that not every row runs.")
    if not manifest.program or manifest.program[-1].kind not in ("exit", "head"):
        raise BundleError(f"{name}: the program must end with an exit or a head.")
    for path in manifest.files:
        if not _PATH.fullmatch(path) or ".." in path:
            raise BundleError(f"{name}: {path!r} is not an allowed path inside a bundle.")
    if "default" not in manifest.operating_points:
        raise BundleError(f"{name}: there is no operating point named default.")


def _check_step(step: Step, manifest: Manifest, *, can_skip: bool, what: str) -> None:
    """Refuses a step that by itself does not fit the bundle."""
    if step.graph is not None and step.graph not in manifest.files:
        raise BundleError(f"{what}: its graph {step.graph} is not among the files.")
    if not 0 <= step.layer <= manifest.encoder.layers:
        raise BundleError(f"{what}: expected a layer of 0 to {manifest.encoder.layers}.")
    if (step.choice is None) != (step.choices < 1) or (step.kind == "select" and step.choice is None):
        raise BundleError(f"{what}: a choice and the number of its pieces go together.")
    if step.part == "fused" and not any(
        s.kind in ("drop", "select") and s.layer == step.layer for s in manifest.program
    ):
        raise BundleError(f"{what}: a fused layer stands in for parts that drop tokens or have pieces.")
    if can_skip and (step.part != "whole" or step.kind in ("select", "drop")):
        raise BundleError(f"{what}: a program that leaves layers out must have them whole.")
