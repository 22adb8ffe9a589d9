"""From a configuration to a checkpoint: data, encoder, stages, operating points."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from edgebert import registry
from edgebert.bundle.files import check_target
from edgebert.checkpoint import (
    TOKENIZER_NAME,
    Checkpoint,
    CheckpointFacts,
    build_model,
    fetch_tokenizer,
    save_checkpoint,
)
from edgebert.config import RunConfig, decode
from edgebert.data import Example, read_examples, texts_of
from edgebert.embedded import resolve_source
from edgebert.encoders._checkpoint import load_encoder
from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.methods._program import AdaptiveModel
from edgebert.methods._tasks import check_task
from edgebert.output import Reporter
from edgebert.tasks import Task, load_task
from edgebert.text import TextEncoder
from edgebert.training.loop import train_stage
from edgebert.training.operating_points import choose_operating_points
from edgebert.training.rows import Rows


def train_model(
    config: RunConfig,
    folder: str | Path,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    is_resumed: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Checkpoint:
    """Trains a method and writes its checkpoint.

    Args:
        config: What to train, from what, on what.
        folder: Where the checkpoint goes.
        seed: Of new weights, the order of rows, and dropout.
        max_steps: Stop every stage after this many steps.
        is_resumed: Go on with an interrupted training of the same folder.
        force: Replace an existing checkpoint, and start an interrupted training again.
        reporter: Where progress goes.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The data cannot be used.
        EdgeBertError: The folder cannot be written.
    """
    reporter = reporter or Reporter()
    target = Path(folder)
    check_target(target, force=force)
    train = config.train
    task = load_task(train.task)
    method = registry.load("edgebert.methods", config.method_name)
    check_task(config.method_name, train.task)
    settings = decode(config.method_settings(), method.Config, where="config", prefix="method.")
    if len(train.stage_epochs) != len(method.STAGES):
        raise ConfigError(
            f"train.stage_epochs: {config.method_name} has the stages {', '.join(method.STAGES)}, "
            f"so expected {len(method.STAGES)} numbers, got {train.stage_epochs}."
        )
    examples = _examples(config, task)
    labels = _labels(config, task, examples)
    torch.manual_seed(seed)
    encoder = load_encoder(resolve_source(train.model), attention_dropout=train.attention_dropout)
    model = build_model(encoder, config, len(labels))
    _check_calibration(model, config)
    tokenizer = fetch_tokenizer(resolve_source(train.model))
    text = TextEncoder(
        tokenizer[TOKENIZER_NAME],
        max_length=min(train.max_length, encoder.config.max_positions),
        pad_token_id=encoder.config.pad_token_id,
    )
    tuning_rows, calibration_rows, rows = (
        Rows(text.encode(texts_of(part)), task.encode_targets(part, labels, where=str(train.data)), text)
        for part in _hold_out(examples, train.tuning_rows, train.calibration_rows)
    )
    outputs = f"{len(labels)} label{'s' if len(labels) > 1 else ''}"
    held_out = len(examples) - len(rows)
    reporter.say(f"{config.method_name}: {len(rows)} rows to train on, {held_out} held out, {outputs}")
    identity = {
        "config": msgspec.to_builtins(config),
        "seed": seed,
        "max_steps": max_steps,
        "labels": labels,
        "rows": len(rows),
    }
    work = _work_folder(target, identity, is_resumed=is_resumed, force=force)
    _run_stages(model, config, rows, seed, max_steps, work, is_resumed, reporter)
    if model.calibrates:
        _calibrate(model, calibration_rows)
        reporter.say(f"calibrated on {len(calibration_rows)} rows")
    rule = method.rule(settings)
    points = choose_operating_points(
        model,
        model.steps(),
        tuning_rows,
        rule=rule,
        policies=method.POLICIES,
        task=task,
        max_drop_points=train.max_drop_points,
    )
    for name, point in points.items():
        if point.metric is not None:
            knobs = ", ".join(f"{knob}={value}" for knob, value in point.knobs.items())
            reporter.say(
                f"operating point {name}: {point.policy}({knobs}): {task.METRIC} {point.metric:.4f} at "
                f"{point.mean_layers:.2f} layers on {point.chosen_on}"
            )
    facts = CheckpointFacts(labels=labels, seed=seed, config=config, operating_points=points)
    checkpoint = Checkpoint(model, facts, tokenizer)
    save_checkpoint(checkpoint, target, force=force)
    shutil.rmtree(work, ignore_errors=True)
    return checkpoint


def _run_stages(
    model: AdaptiveModel,
    config: RunConfig,
    rows: Rows,
    seed: int,
    max_steps: int | None,
    work: Path,
    is_resumed: bool,
    reporter: Reporter,
) -> None:
    """Runs the stages in order; one that an interrupted training finished is loaded instead."""
    for number, stage in enumerate(model.stages(config.train)):
        finished = work / f"{number}-{stage.name}.safetensors"
        if is_resumed and finished.is_file():
            model.load_state_dict(load_file(finished))
            reporter.say(f"train {stage.name}: finished before, loaded")
            continue
        start = time.monotonic()
        train_stage(
            model,
            stage,
            rows,
            config=config.train,
            epochs=config.train.stage_epochs[number],
            seed=seed,
            folder=work / f"{number}-{stage.name}",
            max_steps=max_steps,
            is_resumed=is_resumed,
            reporter=reporter,
        )
        reporter.say(f"train {stage.name}: {time.monotonic() - start:.0f} s")
        work.mkdir(parents=True, exist_ok=True)
        partial = finished.with_suffix(".partial")
        save_file(model.cpu().state_dict(), partial)
        partial.rename(finished)


def _examples(config: RunConfig, task: Task) -> list[Example]:
    if config.train.data is None:
        raise ConfigError("train.data: expected a folder or hub id; give one with --data.")
    examples = read_examples(config.train.data, split="train", columns=config.train.columns, label_kind=task.LABEL_KIND)
    tuning, calibration = config.train.tuning_rows, config.train.calibration_rows
    if len(examples) <= tuning + calibration:
        held_out = f"train.tuning_rows={tuning}" + (f" and train.calibration_rows={calibration}" if calibration else "")
        raise DataError(
            f"{config.train.data}: {len(examples)} training rows, of which {held_out} would be held out; lower it."
        )
    return examples


def _labels(config: RunConfig, task: Task, examples: list[Example]) -> tuple[str, ...]:
    """Returns the names of the model's outputs: those of the configuration, else the task's choice."""
    train = config.train
    if train.labels is None:
        return task.label_names(examples, column=train.columns.get("label"))
    task.check_labels(train.labels, where="train.labels")
    return tuple(train.labels)


def _hold_out(examples: list[Example], *counts: int) -> list[list[Example]]:
    """Splits off parts at random and returns them and the rest.

    They are the same whatever the training's seed, so that seeds are comparable.
    """
    order = np.random.default_rng(0).permutation(len(examples))
    return [[examples[i] for i in places] for places in np.split(order, np.cumsum(counts))]


def _check_calibration(model: AdaptiveModel, config: RunConfig) -> None:
    count = config.train.calibration_rows
    if model.calibrates and not count:
        raise ConfigError(
            f"train.calibration_rows: {config.method_name} counts something on rows that training has not seen; "
            "expected 1 or more, got 0."
        )
    if count and not model.calibrates:
        raise ConfigError(
            f"train.calibration_rows: {config.method_name} has nothing to calibrate; expected 0, got {count}."
        )


@torch.no_grad()
def _calibrate(model: AdaptiveModel, rows: Rows, size: int = 64) -> None:
    was_training = model.training
    model.cpu().eval()
    model.calibrate((batch for _, batch in rows.batches(size)), rows.text.special_ids)
    model.train(was_training)


def _work_folder(target: Path, identity: dict[str, object], *, is_resumed: bool, force: bool) -> Path:
    """Returns the folder of resumable checkpoints beside the target; it says what it was trained from.

    Raises:
        EdgeBertError: An interrupted training is there and neither option was given, or it is of another kind.
    """
    described = json.dumps(identity, sort_keys=True, indent=1)
    work = target.absolute().with_name(f".{target.name}.training")
    if work.exists() and not is_resumed:
        if not force:
            raise EdgeBertError(
                f"{target}: an interrupted training is beside it; go on with --resume or start again with --force."
            )
        shutil.rmtree(work)
    facts = work / "training.json"
    if facts.is_file() and facts.read_text(encoding="utf-8") != described:
        raise EdgeBertError(
            f"{target}: the interrupted training beside it had another configuration, seed, --max-steps or data; "
            "give the same ones to --resume, or start again with --force."
        )
    work.mkdir(parents=True, exist_ok=True)
    facts.write_text(described, encoding="utf-8")
    return work
