"""The manifest of a bundle: a small program, its rule, and facts about every file. Stored as `edgebert.json`.

The file holds the canonical text of the manifest and nothing else. What it may hold is in the types, with limits far
above anything of ours; whether it makes sense is in `edgebert.bundle.manifest_check`, which reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BundleError

FORMAT_VERSION = 5
MANIFEST_NAME = "edgebert.json"
SINGLE_NAME = "onnx/single.onnx"
STATES = ("hidden", "attended")
"""Values that are hidden states, float [rows, tokens, hidden]."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024

ADVICE = "export the bundle again, or get it again from whom you trust."
"""What to do about a bundle that is refused for what it says."""

StepKind = Literal["embed", "plan", "gate", "select", "layer", "drop", "restore", "exit", "head"]
Part = Literal["whole", "fused", "attention", "feed_forward"]
NO_GRAPH = ("drop", "restore")
"""Kinds of steps that the runtime does by itself."""

Name = Annotated[str, msgspec.Meta(max_length=200)]
Phrase = Annotated[str, msgspec.Meta(max_length=4000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Layer = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Pieces = Annotated[int, msgspec.Meta(ge=0, le=2**16)]
Work = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""Multiply-accumulates: with lengths to the square they stay within 64 bits."""

Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]
Knobs = Annotated[dict[Name, bool | float | int | Phrase | None], msgspec.Meta(max_length=64)]


class Macs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiply-accumulates of one row of T tokens: row + token * T + token_pair * T^2."""

    row: Work = 0
    token: Work = 0
    token_pair: Work = 0

    def of(self, lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """Returns the multiply-accumulates of rows of these lengths in tokens, float64 [rows]."""
        length = np.asarray(lengths, np.float64)
        return self.row + self.token * length + self.token_pair * length**2

    def times(self, number: int) -> Macs:
        """Returns what so many of them cost together."""
        return Macs(row=number * self.row, token=number * self.token, token_pair=number * self.token_pair)


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
    layer: Layer
    graph: Name | None
    inputs: Names
    outputs: Names
    macs: Macs = Macs()
    part: Part = "whole"
    choice: Name | None = None
    choices: Pieces = 0
    each: Macs = Macs()

    @property
    def is_linked(self) -> bool:
        """Whether the graph before it computes it."""
        return self.graph is None


class EncoderFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The encoder's shape and what it accepts; lengths in tokens.

    Segment ids are read where `token_types` is 2 or more. `embedding_size` is the width of embeddings that are widened
    to `hidden_size`, None where they are not; `shared_layers` says how many consecutive layers share their weights.
    """

    family: Name
    layers: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    hidden_size: Positive
    heads: Positive
    feed_forward_size: Positive
    vocabulary_size: Positive
    token_types: Size
    pad_token_id: Size
    max_length: Positive
    activation: Name = "gelu"
    embedding_size: Positive | None = None
    shared_layers: Positive = 1


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

    policy: Name
    knobs: Knobs
    chosen_on: Phrase = ""
    metric: float | None = None
    mean_layers: float | None = None
    cost_ratio: float | None = None
    latency_ms: float | None = None
    budget: Phrase = ""
    guarantee: Guarantee | None = None


class FileFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the bundle; `inputs` and `outputs` are a graph's, else empty."""

    sha256: Name
    bytes: Size
    inputs: Names = ()
    outputs: Names = ()


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
    method: Name
    method_settings: dict[str, Any]
    task: Name
    task_settings: dict[str, Any]
    labels: tuple[Phrase, ...]
    encoder: EncoderFacts
    program: Annotated[tuple[Step, ...], msgspec.Meta(max_length=10_000)]
    rule: OperatingPoint
    policies: Names
    operating_points: Annotated[dict[Name, OperatingPoint], msgspec.Meta(max_length=1000)]
    precision: Name
    opset: Size
    files: Annotated[dict[Name, FileFacts], msgspec.Meta(max_length=4000)]
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
    """Returns the canonical bytes of a manifest, its digest filled in.

    Raises:
        BundleError: Something in it is longer or larger than a manifest may hold.
    """
    digest = hashlib.sha256(_text(msgspec.structs.replace(manifest, digest=""))).hexdigest()
    return _text(msgspec.structs.replace(manifest, digest=digest))


def _text(manifest: Manifest) -> bytes:
    # Once through plain JSON first, so that a number has the type it will have when it is read again.
    try:
        manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{MANIFEST_NAME}: a manifest cannot hold this: {error}.") from error
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1) + b"\n"
