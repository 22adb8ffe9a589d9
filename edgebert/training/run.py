"""From a configuration to a checkpoint: data, encoder, stages, operating points."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgebert import registry
from edgebert.bundle.manifest import Knobs, OperatingPoint
from edgebert.bundle.publish import check_target
from edgebert.checkpoint import (
    TOKENIZER_NAME,
    Checkpoint,
    CheckpointFacts,
    build_model,
    fetch_tokenizer,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    take_over,
)
from edgebert.config import RunConfig, TrainConfig, decode
from edgebert.data import Example, texts_of
from edgebert.embedded import resolve_source
from edgebert.encoders._checkpoint import load_encoder
from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.methods._program import AdaptiveModel
from edgebert.methods._tasks import check_task, policies_for
from edgebert.output import Reporter
from edgebert.partial import discard, synchronise_file, writing
from edgebert.tasks import Task, load_task, task_settings
from edgebert.text import TextEncoder
from edgebert.training.held_out import distinct_texts, hold_out, whole_texts
from edgebert.training.length_points import choose_lengths
from edgebert.training.loop import train_stage
from edgebert.training.operating_points import choose_operating_points
from edgebert.training.rows import Rows
from edgebert.write import write_file

_IDENTITY = "training.json"
"""What the folder of a training that can go on was trained from."""


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
        ConfigError: A setting is wrong, or the folder is what is trained from.
        DataError: The data cannot be used.
        EdgeBertError: The folder cannot be written, or another process is training it; what was there is untouched.
    """
    target = Path(folder)
    sources = [config.train.data, config.train.model, config.method.get("teacher")]
    check_target(target, force=force, kind="checkpoint", sources=[str(source) for source in sources if source])
    work = target.absolute().with_name(f".{target.name}.training")
    try:
        with writing(work):
            return _train(config, target, work, seed, max_steps, is_resumed, force, reporter or Reporter())
    except OSError as error:
        raise EdgeBertError(
            f"{error.filename or work}: {error.strerror or error}; what was there is untouched, and --resume goes on."
        ) from error


def _train(
    config: RunConfig,
    target: Path,
    work: Path,
    seed: int,
    max_steps: int | None,
    is_resumed: bool,
    force: bool,
    reporter: Reporter,
) -> Checkpoint:
    train = config.train
    task = load_task(train.task)
    method = registry.load("edgebert.methods", config.method_name)
    check_task(config.method_name, train.task)
    settings = decode(config.method_settings(), method.Config, where="config", prefix="method.")
    asked = task_settings(task, train.task_settings, where="config", prefix="train.task_settings.")
    if len(train.stage_epochs) != len(method.STAGES):
        raise ConfigError(
            f"train.stage_epochs: {config.method_name} has the stages {', '.join(method.STAGES)}, "
            f"so expected {len(method.STAGES)} numbers, got {train.stage_epochs}."
        )
    examples = _examples(config, task)
    labels = _labels(config, task, examples)
    torch.manual_seed(seed)
    source = resolve_source(train.model)
    encoder = load_encoder(source, attention_dropout=train.attention_dropout)
    model = build_model(encoder, config, len(labels))
    if take_over(model, source, labels, config):
        reporter.say(f"{config.method_name}: starts with the head of {train.model} too")
    _check_calibration(model, config)
    tokenizer = fetch_tokenizer(source)
    text = TextEncoder(
        tokenizer[TOKENIZER_NAME],
        max_length=min(train.max_length, encoder.config.max_positions),
        pad_token_id=encoder.config.pad_token_id,
    )
    parts, left_out = _held_out(examples, task, text, train)
    tuning_rows, calibration_rows, rows = (_rows(part, task, labels, text, asked, str(train.data)) for part in parts)
    outputs = f"{len(labels)} label{'s' if len(labels) > 1 else ''}"
    held_out = f"{len(parts[0]) + len(parts[1])} held out" + (f" with {left_out} parts of them" if left_out else "")
    reporter.say(f"{config.method_name}: {len(rows)} rows to train on, {held_out}, {outputs}")
    identity = {
        "config": msgspec.to_builtins(config),
        "seed": seed,
        "max_steps": max_steps,
        "labels": labels,
        "rows": len(rows),
    }
    if is_resumed and not (work / _IDENTITY).is_file():
        reporter.say(f"{target}: nothing to resume; starting")
    _open_work_folder(work, target, identity, is_resumed=is_resumed, force=force)
    if model.learns_from is not None:
        model.learn_from(_open_teacher(model.learns_from, config, labels, text))
    _run_stages(model, config, rows, seed, max_steps, work, is_resumed, reporter)
    model.learn_from(None)
    if model.calibrates:
        _calibrate(model, calibration_rows)
        reporter.say(f"calibrated on {len(calibration_rows)} rows")
    rule = method.rule(settings)
    points = _choose_points(
        model, tuning_rows, rule, policies_for(config.method_name, config.train.task), task, train, reporter
    )
    for name, point in points.items():
        if point.metric is not None:
            knobs = ", ".join(f"{knob}={value}" for knob, value in point.knobs.items())
            cost = "" if point.cost_ratio is None else f", {point.cost_ratio:.2f} of the cost,"
            reporter.say(
                f"operating point {name}: {point.policy}({knobs}): {task.METRIC} {point.metric:.4f} at "
                f"{point.mean_layers:.2f} layers{cost} on {point.chosen_on}"
            )
    facts = CheckpointFacts(labels=labels, seed=seed, config=config, operating_points=points)
    checkpoint = Checkpoint(model, facts, tokenizer)
    save_checkpoint(checkpoint, target, force=force)
    discard(work, target)
    return checkpoint


def _choose_points(
    model: AdaptiveModel,
    rows: Rows,
    rule: tuple[str, Knobs],
    policies: tuple[str, ...],
    task: Task,
    train: TrainConfig,
    reporter: Reporter,
) -> dict[str, OperatingPoint]:
    if model.length_search is not None:
        return choose_lengths(model, model.length_search, rows, task=task, train=train, reporter=reporter)
    return choose_operating_points(
        model, model.steps(), rows, rule=rule, policies=policies, task=task, max_drop_points=train.max_drop_points
    )


def _open_teacher(source: str, config: RunConfig, labels: tuple[str, ...], text: TextEncoder) -> AdaptiveModel:
    """Opens the checkpoint a model learns from.

    Raises:
        ConfigError: There is none, or it was trained for another task, other labels or other tokens.
    """
    checkpoint = load_checkpoint(resolve_source(source))
    where, facts = f"method.teacher: {source}", checkpoint.facts
    if facts.config.train.task != config.train.task:
        raise ConfigError(f"{where}: expected the task {config.train.task}, got {facts.config.train.task}.")
    is_unnamed = all(label.startswith("LABEL_") for label in facts.labels)
    if len(facts.labels) != len(labels) or (facts.labels != labels and not is_unnamed):
        raise ConfigError(f"{where}: expected the labels {', '.join(labels)}, got {', '.join(facts.labels)}.")
    own = checkpoint.tokenizer.get(TOKENIZER_NAME)
    if own is None or not text.has_tokens_of(TextEncoder(own, max_length=text.max_length, pad_token_id=0)):
        raise ConfigError(f"{where}: expected a tokenizer with the tokens of {config.train.model}.")
    return checkpoint.model


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
            model.load_state_dict(_read_stage(finished))
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
        partial = finished.with_suffix(".partial")
        save_weights(model.cpu().state_dict(), partial)
        synchronise_file(partial)
        partial.rename(finished)


def _read_stage(finished: Path) -> dict[str, Tensor]:
    try:
        return load_file(finished)
    except SafetensorError as error:
        raise EdgeBertError(f"{finished}: damaged ({error}); start again with --force.") from error


def _examples(config: RunConfig, task: Task) -> list[Example]:
    if config.train.data is None:
        raise ConfigError("train.data: expected a folder or hub id; give one with --data.")
    examples = list(task.read(config.train.data, split="train", columns=config.train.columns))
    tuning, calibration = config.train.tuning_rows, config.train.calibration_rows
    if len(examples) <= tuning + calibration:
        held_out = f"train.tuning_rows={tuning}" + (f" and train.calibration_rows={calibration}" if calibration else "")
        raise DataError(
            f"{config.train.data}: {len(examples)} training rows, of which {held_out} would be held out; "
            f"lower it, such as --set train.tuning_rows={max(1, len(examples) // 5)}."
        )
    return examples


def _labels(config: RunConfig, task: Task, examples: list[Example]) -> tuple[str, ...]:
    """Returns the names of the model's outputs: those of the configuration, else the task's choice."""
    train = config.train
    if train.labels is None:
        return task.label_names(examples, column=train.columns.get("label"))
    task.check_labels(train.labels, where="train.labels")
    return tuple(train.labels)


def _rows(
    examples: list[Example], task: Task, labels: Sequence[str], text: TextEncoder, settings: Any, where: str
) -> Rows:
    """Returns the rows of examples, with what the loss and the metric want of them."""
    encoded = task.encode(texts_of(examples), text, settings)
    targets = task.encode_targets(examples, labels, where=where)
    return Rows(encoded, task.row_targets(examples, encoded, targets), text, targets)


def _held_out(
    examples: list[Example], task: Task, text: TextEncoder, train: TrainConfig
) -> tuple[list[list[Example]], int]:
    """Splits off the examples to tune and to calibrate on.

    Returns:
        Those two and the examples to train on; and how many parts of the texts held out are none of them.

    Raises:
        ConfigError: The task is not asked texts, and they are to be told apart.
        DataError: Nothing is left to train on.
    """
    groups, may_be_held_out = task.groups(examples), None
    if train.held_out != "rows":
        if task.ASKED != "texts":
            raise ConfigError(
                f"train.held_out: {train.task} is asked {task.ASKED}; expected rows, got {train.held_out}."
            )
        # As inside a text, after a space: byte-level vocabularies have other tokens for a text's first word.
        texts = [f" {t}" if isinstance(t, str) else (f" {t[0]}", f" {t[1]}") for t in texts_of(examples)]
        rows = [row.ids for row in task.encode(texts, text, task_settings(task, {}, where="config", prefix=""))]
        if train.held_out == "distinct_texts":
            groups = distinct_texts(rows)
        else:
            groups, may_be_held_out = whole_texts(rows, text.special_ids)
    places = hold_out(groups, (train.tuning_rows, train.calibration_rows), may_be_held_out=may_be_held_out)
    parts = [[examples[place] for place in part] for part in places]
    return parts, len(examples) - sum(map(len, parts))


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


def _open_work_folder(work: Path, target: Path, identity: dict[str, object], *, is_resumed: bool, force: bool) -> None:
    """Makes the folder of resumable checkpoints beside the target, or opens it; it says what it was trained from.

    Raises:
        EdgeBertError: An interrupted training is there and neither option was given, or it is of another kind.
    """
    described = json.dumps(identity, sort_keys=True, indent=1)
    facts = work / _IDENTITY
    if work.exists() and not is_resumed:
        if not force:
            raise EdgeBertError(
                f"{target}: an interrupted training is beside it; go on with --resume or start again with --force."
            )
        discard(work, target)
    if facts.is_file() and facts.read_text(encoding="utf-8") != described:
        raise EdgeBertError(
            f"{target}: the interrupted training beside it had another configuration, seed, --max-steps or data; "
            "give the same ones to --resume, or start again with --force."
        )
    if not facts.is_file():
        discard(work, target)  # it does not say what it is of
        work.mkdir(parents=True, exist_ok=True)
        write_file(facts, described, force=False)
