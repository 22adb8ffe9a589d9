"""Turns a checkpoint into a bundle: one ONNX graph per step, a manifest, a tokenizer and a model card."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from torch import nn

from edgebert import registry
from edgebert.bundle import (
    CARD_NAME,
    CONFIG_NAME,
    HUGGING_FACE_NAME,
    SAMPLES_NAME,
    TOKENIZER_NAME,
    WHOLE_MODEL_NAME,
    Bundle,
    open_bundle,
)
from edgebert.bundle.card import write_card
from edgebert.bundle.files import sha256
from edgebert.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    EncoderFacts,
    FileFacts,
    Manifest,
    OperatingPoint,
    Provenance,
    Step,
    encode_manifest,
)
from edgebert.bundle.publish import check_target, publish
from edgebert.checkpoint import Checkpoint, CheckpointFacts, build_model, hugging_face_config, load_checkpoint
from edgebert.config import ExportConfig, RunConfig, TrainConfig, decode
from edgebert.encoders._blocks import EncoderConfig
from edgebert.errors import ConfigError
from edgebert.export.half import half_graph
from edgebert.export.link import GraphPlan, plan_graphs
from edgebert.export.pieces import pieces_graph
from edgebert.export.shapes import PREFIX, random_encoder
from edgebert.export.trace import graph_outputs, trace_module
from edgebert.methods._pieces import PiecewisePart
from edgebert.methods._tasks import policies_for
from edgebert.output import Reporter
from edgebert.samples import record_samples
from edgebert.tasks import load_task, task_settings
from edgebert.verify import compare
from edgebert.yaml_tree import write_yaml

_PACKAGES = ("edgebert", "onnx", "onnxscript", "onnxruntime", "torch", "transformers", "tokenizers", "numpy")
MOST_WHOLE_BYTES = 2**31 - 2**24
"""The most bytes of weights that go into one graph: protobuf ends at 2 GiB, and the nodes need some of them."""


def export_model(
    source: str | Path,
    bundle: str | Path,
    *,
    method: str | None = None,
    settings: ExportConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Bundle:
    """Exports a checkpoint and publishes the bundle once it agrees with torch.

    Args:
        source: A checkpoint folder, a Hugging Face classifier, regressor or reader, or `random:SHAPE`.
        bundle: The bundle folder to make.
        method: For `random:SHAPE`, the method; else None.
        settings: How to export; None takes the checkpoint's own.
        overrides: Single keys of the settings to change.
        force: Replace an existing bundle.
        reporter: Where progress goes.

    Raises:
        ConfigError: The source or a setting is wrong.
        QualityError: The bundle differs from torch by more than the tolerance; nothing is published.
        EdgeBertError: The bundle cannot be written; what was there is untouched.
    """
    reporter = reporter or Reporter()
    target = Path(bundle)
    check_target(target, force=force)
    checkpoint = _open(str(source), method)
    tree = {**msgspec.to_builtins(settings or checkpoint.facts.config.export), **(overrides or {})}
    settings = decode(tree, ExportConfig, where="options", prefix="export.")
    with publish(target, force=force) as folder:
        _write(checkpoint, settings, folder, target.name, reporter)
    return open_bundle(target)


def _open(source: str, method: str | None) -> Checkpoint:
    if not source.startswith(PREFIX):
        if method is not None:
            raise ConfigError("--method goes with random:SHAPE only; a checkpoint knows its method.")
        return load_checkpoint(source)
    if method is None:
        raise ConfigError(f"{source}: say which method with --method.")
    torch.manual_seed(0)
    config = RunConfig(method={"name": method})
    module = registry.load("edgebert.methods", method)
    model = build_model(random_encoder(source), config, 2)
    policy, knobs = module.rule(module.Config())
    facts = CheckpointFacts(
        labels=("label_0", "label_1"),
        seed=0,
        config=config,
        operating_points={"default": OperatingPoint(policy=policy, knobs=knobs)},
    )
    return Checkpoint(model, facts, {})


def _write(checkpoint: Checkpoint, settings: ExportConfig, folder: Path, name: str, reporter: Reporter) -> None:
    """Fills the folder: graphs and texts first, then the manifest, its parity, and the card."""
    model = checkpoint.model
    method = registry.load("edgebert.methods", checkpoint.facts.config.method_name)
    model.eval()
    shape = model.encoder.config
    plans = plan_graphs(model.steps(), link=settings.link)
    files: dict[str, FileFacts] = {}
    has_whole = settings.whole_model and method.WHOLE_MODEL and _fits_one_graph(model, reporter)
    graphs = {f"graphs/{plan.step.file}.onnx": plan for plan in plans if plan.module is not None}
    with reporter.track("export", len(graphs) + has_whole) as advance:
        for path, plan in graphs.items():
            graph = _in_precision(_graph(plan, shape, settings.opset), settings)
            files[path] = _write_graph(graph, plan.inputs, plan.outputs, folder / path)
            advance(1, plan.step.file)
        if has_whole:
            whole = trace_module(model, shape.input_names, ("logits",), config=shape, opset=settings.opset)
            whole = _in_precision(whole, settings)
            files[WHOLE_MODEL_NAME] = _write_graph(whole, shape.input_names, ("logits",), folder / WHOLE_MODEL_NAME)
            advance(1, "whole model")
            files[HUGGING_FACE_NAME] = _write_file(folder / HUGGING_FACE_NAME, hugging_face_config(checkpoint))
    if TOKENIZER_NAME in checkpoint.tokenizer:
        files[TOKENIZER_NAME] = _write_file(folder / TOKENIZER_NAME, checkpoint.tokenizer[TOKENIZER_NAME])
    config = msgspec.structs.replace(checkpoint.facts.config, export=settings)
    files[CONFIG_NAME] = _write_file(folder / CONFIG_NAME, write_yaml(msgspec.to_builtins(config)).encode())
    manifest = _manifest(checkpoint, plans, files, settings)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    written = open_bundle(folder)
    parity = compare(model, written, samples=settings.verify_samples, tolerance=settings.tolerance, name=name)
    reporter.say(
        f"verified on {parity.samples} inputs: largest difference {parity.max_difference:.1e}, "
        f"{parity.differing_decisions} of {parity.decisions} decisions differ"
    )
    manifest = msgspec.structs.replace(manifest, parity=parity)
    task = load_task(manifest.task)
    card = write_card(manifest, name, tag=task.PIPELINE_TAG, call=task.CALL)
    files = {
        **files,
        SAMPLES_NAME: _write_file(folder / SAMPLES_NAME, record_samples(written)),
        CARD_NAME: _write_file(folder / CARD_NAME, card.encode()),
    }
    manifest = msgspec.structs.replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))


def _fits_one_graph(model: nn.Module, reporter: Reporter) -> bool:
    """Says whether a model's weights, in fp32 as they are traced, go into one graph; tells the user if they do not."""
    size_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size_bytes > MOST_WHOLE_BYTES:
        reporter.say(
            f"whole model: left out: one graph holds {MOST_WHOLE_BYTES / 1e9:.2f} GB of weights, it has "
            f"{size_bytes / 1e9:.2f}; the split graphs do without it"
        )
    return size_bytes <= MOST_WHOLE_BYTES


def _graph(plan: GraphPlan, shape: EncoderConfig, opset: int) -> onnx.ModelProto:
    """Makes the graph of a plan."""
    if isinstance(plan.step.module, PiecewisePart):
        return pieces_graph(plan, config=shape, opset=opset)
    assert plan.module is not None
    return trace_module(plan.module, plan.inputs, plan.outputs, config=shape, opset=opset)


def _in_precision(graph: onnx.ModelProto, settings: ExportConfig) -> onnx.ModelProto:
    return half_graph(graph) if settings.precision == "fp16" else graph


def _write_graph(model: onnx.ModelProto, inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path) -> FileFacts:
    facts = _write_file(path, model.SerializeToString(deterministic=True))
    return msgspec.structs.replace(facts, inputs=inputs, outputs=tuple(graph_outputs(inputs, outputs)))


def _write_file(path: Path, data: bytes) -> FileFacts:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return FileFacts(sha256=sha256(data), bytes=len(data))


def _manifest(
    checkpoint: Checkpoint, plans: list[GraphPlan], files: dict[str, FileFacts], settings: ExportConfig
) -> Manifest:
    facts, shape = checkpoint.facts, checkpoint.model.encoder.config
    module = registry.load("edgebert.methods", facts.config.method_name)
    method_config = msgspec.convert(facts.config.method_settings(), module.Config)
    policy, knobs = module.rule(method_config)
    steps = []
    for plan in plans:
        path = f"graphs/{plan.step.file}.onnx"
        for step in (plan.step, *plan.linked):
            owns = step is plan.step and step.module is not None
            steps.append(
                Step(
                    kind=step.kind,
                    layer=step.layer,
                    graph=path if owns else None,
                    inputs=plan.inputs if step is plan.step else step.outputs,
                    outputs=plan.outputs if step is plan.step else (),
                    macs=step.macs,
                    part=step.part,
                    choice=step.choice,
                    choices=step.choices,
                    each=step.each,
                )
            )
    return Manifest(
        format_version=FORMAT_VERSION,
        method=facts.config.method_name,
        method_settings={**msgspec.to_builtins(method_config), **checkpoint.model.chosen_settings},
        task=facts.config.train.task,
        task_settings=_task_settings(facts.config.train),
        labels=facts.labels,
        encoder=EncoderFacts(
            family=shape.family,
            layers=shape.layers,
            hidden_size=shape.hidden_size,
            heads=shape.heads,
            feed_forward_size=shape.feed_forward_size,
            vocabulary_size=shape.vocabulary_size,
            token_types=shape.token_types,
            pad_token_id=shape.pad_token_id,
            max_length=min(
                shape.max_positions,
                facts.config.train.max_length if checkpoint.tokenizer else shape.max_positions,
            ),
            activation=shape.activation,
            embedding_size=shape.embedding_size,
            shared_layers=shape.shared_layers,
        ),
        program=tuple(steps),
        rule=OperatingPoint(policy=policy, knobs=knobs),
        policies=policies_for(facts.config.method_name, facts.config.train.task),
        operating_points=facts.operating_points,
        precision=settings.precision,
        opset=settings.opset,
        files=files,
        provenance=Provenance(versions=_versions(), seed=facts.seed),
    )


def _task_settings(train: TrainConfig) -> dict[str, Any]:
    settings = task_settings(load_task(train.task), train.task_settings, where="config", prefix="train.task_settings.")
    written: dict[str, Any] = msgspec.to_builtins(settings)
    return written


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
