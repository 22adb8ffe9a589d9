"""Turns a checkpoint trained elsewhere into one of ours; how it names its tensors says what it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from edgebert import registry
from edgebert.bundle.manifest import OperatingPoint
from edgebert.bundle.publish import check_target
from edgebert.checkpoint import (
    TOKENIZER_NAME,
    Checkpoint,
    CheckpointFacts,
    build_model,
    foreign_train_config,
    save_checkpoint,
)
from edgebert.config import RunConfig, decode
from edgebert.convert._source import Source, read_source
from edgebert.convert._tokenizer import find_tokenizer
from edgebert.convert._translation import Translation
from edgebert.encoders._checkpoint import build_encoder, rename
from edgebert.errors import ConfigError
from edgebert.output import Reporter

_PACKAGE = "edgebert.convert"


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that was converted.

    Attributes:
        checkpoint: What was written.
        naming: The file of `edgebert/convert` that knew its names.
        ignored: Tensors that have no place and need none, by name, with the reason.
        notes: What a user should know.
    """

    checkpoint: Checkpoint
    naming: str
    ignored: dict[str, str]
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    *,
    naming: str | None = None,
    config: str | Path | None = None,
    tokenizer: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Conversion:
    """Reads a checkpoint trained elsewhere and writes it as one of ours.

    Args:
        source: A folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, or a file of weights.
        folder: Where our checkpoint goes.
        naming: A file of `edgebert/convert`; None recognises the names.
        config: The configuration file; None is `config.json` beside the weights.
        tokenizer: Folder or hub id of the tokenizer, or a WordPiece vocabulary file; None is the source's folder.
        force: Replace an existing checkpoint.
        reporter: Where messages go.

    Raises:
        ConfigError: A file cannot be used, the names are unknown, or a tensor of either side has no counterpart.
        EdgeBertError: The folder cannot be written.
    """
    reporter = reporter or Reporter()
    target = Path(folder)
    check_target(target, force=force, kind="checkpoint", sources=[source])
    if naming:
        registry.load(_PACKAGE, naming)
    read = read_source(Path(source), Path(config) if config else None)
    where = str(source)
    kind = naming or _recognise(read.weights, where)
    translation: Translation = registry.load(_PACKAGE, kind).translate(
        read.settings, read.weights, where=str(read.settings_path)
    )
    checkpoint, ignored = _convert(read, translation, kind, tokenizer, where)
    save_checkpoint(checkpoint, target, force=force)
    notes = _notes(checkpoint, translation)
    how = "as told" if naming else "recognised by its tensor names"
    reporter.say(f"{where}: {kind}, {how}; becomes the method {translation.method['name']}: {translation.reason}")
    for reason in sorted(set(ignored.values())):
        reporter.say(f"ignored, {reason}: {', '.join(name for name, why in ignored.items() if why == reason)}")
    for note in notes:
        reporter.say(f"note: {note}")
    return Conversion(checkpoint, kind, ignored, notes)


def _recognise(weights: dict[str, Tensor], where: str) -> str:
    known = registry.names(_PACKAGE)
    fitting = [name for name in known if registry.load(_PACKAGE, name).recognises(weights)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"{where}: its tensor names fit {' and '.join(fitting)}; say which with --from.")
    raise ConfigError(
        f"{where}: its tensor names are of no known kind ({', '.join(list(weights)[:3])}, ...); known: "
        f"{', '.join(known)}. An ordinary classifier of transformers needs no conversion: edgebert export takes it."
    )


def _convert(
    source: Source, translation: Translation, naming: str, tokenizer: str | None, where: str
) -> tuple[Checkpoint, dict[str, str]]:
    encoder = build_encoder(translation.encoder, where=str(source.settings_path))
    labels = _labels(source, translation)
    task = "classification" if len(labels) > 1 else "regression"
    method = registry.load("edgebert.methods", translation.method["name"])
    if task not in method.TASKS:
        raise ConfigError(
            f"{where}: one label is {task}, which {translation.method['name']} refuses: {method.REFUSES[task]}."
        )
    train = foreign_train_config(where, task, encoder, where=str(source.settings_path))
    config = RunConfig(method=translation.method, train=train)
    model = build_model(encoder, config, len(labels))
    ignored = _fill(model, source.weights, translation, naming, where)
    settings = decode(config.method_settings(), method.Config, where="config", prefix="method.")
    policy, knobs = method.rule(settings)
    points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
    facts = CheckpointFacts(labels=labels, seed=None, config=config, operating_points=points)
    files = find_tokenizer(tokenizer or str(source.folder), encoder.config)
    files[TOKENIZER_NAME] = translation.adapt_tokenizer(files[TOKENIZER_NAME])
    return Checkpoint(model, facts, files), ignored


def _labels(source: Source, translation: Translation) -> tuple[str, ...]:
    """Returns the settings' label names, or LABEL_0 and so on, as many as the tensors have rows for."""
    names = source.settings.get("id2label") or {}
    try:
        labels = tuple(str(names[key]) for key in sorted(names, key=int))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source.settings_path}: id2label: expected names by number, got {names!r}.") from error
    table = source.weights.get(translation.label_tensor)
    expected = len(table) if table is not None else len(labels) or 2
    if labels and len(labels) != expected:
        raise ConfigError(
            f"{source.settings_path}: id2label: expected {expected} names, as many as {translation.label_tensor} has "
            f"rows, got {len(labels)}."
        )
    return labels or tuple(f"LABEL_{number}" for number in range(expected))


def _fill(
    model: nn.Module, weights: dict[str, Tensor], translation: Translation, naming: str, where: str
) -> dict[str, str]:
    """Copies every tensor to its place and returns those that need none, with the reason."""
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    problems: list[str] = []
    for name, tensor in weights.items():
        reason = next((why for pattern, why in translation.ignored if re.fullmatch(pattern, name)), None)
        place = rename(name, translation.renames)
        if reason is not None:
            ignored[name] = reason
        elif place is None or place not in own:
            problems.append(f"{name} has no place")
        else:
            found[place] = translation.adapt_tensor(name, tensor)
            if found[place].shape != own[place].shape:
                shape, expected = tuple(found[place].shape), tuple(own[place].shape)
                problems.append(f"{name} has the shape {shape}, expected {expected}")
    back = tuple((ours, theirs) for theirs, ours in translation.renames)
    problems += [f"{rename(name, back) or name} is missing, for our {name}" for name in own if name not in found]
    if problems:
        raise ConfigError(
            f"{where}: cannot be converted from {naming}, {len(problems)} tensors: {'; '.join(problems)}."
        )
    model.load_state_dict(found)
    return ignored


def _notes(checkpoint: Checkpoint, translation: Translation) -> tuple[str, ...]:
    point = checkpoint.facts.operating_points["default"]
    knobs = ", ".join(f"{knob}={value}" for knob, value in point.knobs.items())
    rule = f"operating point default is the method's own rule, {point.policy}({knobs}), chosen on no data"
    return (*translation.notes, rule)
