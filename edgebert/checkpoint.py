"""Checkpoints: an ordinary Hugging Face folder (config.json, model.safetensors, tokenizer) plus `edgebert.yaml`.

The encoder's weights carry the names `transformers` gives them, so that `AutoModel` opens any checkpoint, and
`AutoModelForSequenceClassification` opens that of a `plain` model that pools the first token, and
`AutoModelForQuestionAnswering` that of one that answers questions. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgebert import registry
from edgebert.bundle.manifest import OperatingPoint
from edgebert.bundle.publish import publish
from edgebert.config import RunConfig, TrainConfig, decode, decode_config, read_settings_tree
from edgebert.encoders._blocks import Encoder
from edgebert.encoders._checkpoint import (
    build_encoder,
    checkpoint_weights,
    load_weights,
    read_architectures,
    read_model,
    rename,
    settings_of,
)
from edgebert.errors import ConfigError, DataError, require
from edgebert.hub import model_options
from edgebert.methods._heads import SPAN_RENAMES
from edgebert.methods._program import AdaptiveModel
from edgebert.methods._tasks import check_task
from edgebert.read import LARGEST_SETTINGS_BYTES, read_file, read_object
from edgebert.tasks import Task, load_task
from edgebert.yaml_tree import write_yaml

FACTS_NAME = "edgebert.yaml"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.json"
_VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `edgebert.yaml` holds beside the weights.

    Attributes:
        labels: Label names, in the order of the scores.
        seed: The training's seed.
        config: The effective run configuration.
        operating_points: Named policies, chosen on a slice of train.
    """

    labels: tuple[str, ...]
    seed: int | None
    config: RunConfig
    operating_points: dict[str, OperatingPoint]


@dataclass(frozen=True)
class Checkpoint:
    """A model with its facts and its tokenizer's files (name to bytes; empty when it has none)."""

    model: AdaptiveModel
    facts: CheckpointFacts
    tokenizer: dict[str, bytes]


def build_model(encoder: Any, config: RunConfig, n_labels: int) -> AdaptiveModel:
    """Makes the method's model around an encoder.

    Raises:
        ConfigError: The method or one of its settings is unknown or wrong, or it does not do the task.
    """
    check_task(config.method_name, config.train.task)
    method = registry.load("edgebert.methods", config.method_name)
    settings = decode(config.method_settings(), method.Config, where="config", prefix="method.")
    per_token = {"per_token": True} if load_task(config.train.task).PER_TOKEN else {}
    model: AdaptiveModel = method.build(encoder, settings, n_labels, **per_token)
    return model


def foreign_train_config(source: str, task: str, encoder: Encoder, *, where: str) -> TrainConfig:
    """Returns the section `train` of a checkpoint that was trained elsewhere.

    Args:
        source: What it was.
        task: Its task.
        encoder: Its encoder, whose positions are the longest input.
        where: What messages call its settings.

    Raises:
        ConfigError: It has too few positions.
    """
    longest = encoder.config.max_positions
    return decode({"model": source, "task": task, "max_length": longest}, TrainConfig, where=where)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, force: bool) -> None:
    """Writes a checkpoint folder; an existing one stays until the new one is complete.

    Raises:
        EdgeBertError: The folder cannot be written.
    """
    facts = checkpoint.facts
    with publish(folder, force=force) as partial:
        weights = {name: tensor.contiguous() for name, tensor in _weights(checkpoint).items()}
        save_weights(weights, partial / WEIGHTS_NAME)
        (partial / "config.json").write_bytes(hugging_face_config(checkpoint))
        (partial / FACTS_NAME).write_text(write_yaml(msgspec.to_builtins(facts)), encoding="utf-8")
        for name, data in checkpoint.tokenizer.items():
            (partial / name).write_bytes(data)


def save_weights(weights: dict[str, Any], path: Path) -> None:
    """Writes tensors by name as a file of safetensors; raises OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error


def hugging_face_config(checkpoint: Checkpoint) -> bytes:
    """Returns the `config.json` that libraries of Hugging Face open a checkpoint, or a whole model in ONNX, with."""
    facts = checkpoint.facts
    settings = settings_of(checkpoint.model.encoder.config)
    settings["id2label"] = {str(number): label for number, label in enumerate(facts.labels)}
    settings["label2id"] = {label: number for number, label in enumerate(facts.labels)}
    problem = load_task(facts.config.train.task).PROBLEM_TYPE
    settings.update({"problem_type": problem} if problem else {})
    settings["architectures"] = [_architecture(checkpoint)]
    return (json.dumps(settings, indent=2) + "\n").encode()


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a checkpoint of edgebert, or a `plain` one of Hugging Face: a classifier, a regressor, or a reader.

    Raises:
        ConfigError: There is none, or it does not fit together.
    """
    folder = Path(source)
    if not (folder / FACTS_NAME).is_file():
        return _load_foreign(str(source))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with _unreplaced(folder):
            facts = _read_facts(folder / FACTS_NAME)
            settings = read_object(folder / "config.json", error=DataError)
            weights = load_file(folder / WEIGHTS_NAME)
            tokenizer = read_tokenizer(folder)
    except ConfigError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{folder}: not a complete checkpoint: {error}") from error
    encoder = build_encoder(settings, where=str(folder / "config.json"))
    load_weights(encoder, weights, where=str(folder))
    config = facts.config
    if config.method.get("layers") is not None:
        config = msgspec.structs.replace(config, method={**config.method, "layers": encoder.config.layers})
    model = build_model(encoder, config, len(facts.labels))
    _load_heads(model, weights, _names_of_heads(load_task(config.train.task), model), where=str(folder))
    return Checkpoint(model, facts, tokenizer)


@contextlib.contextmanager
def _unreplaced(folder: Path) -> Iterator[None]:
    """Refuses what was read of a folder while another one took its place: it may be half of each."""

    def identity() -> tuple[int, int, int]:
        facts = folder.stat()
        return facts.st_dev, facts.st_ino, facts.st_mtime_ns

    before = identity()
    yield
    if identity() != before:
        raise ConfigError(f"{folder}: was replaced while it was read; try again.")


def take_over(model: AdaptiveModel, source: str, labels: tuple[str, ...], config: RunConfig) -> bool:
    """Gives a new model the pooling and the head of the checkpoint its encoder came from.

    So that what was fine-tuned once needs no fine-tuning again. Nothing happens unless the source is a checkpoint of
    edgebert for the same task and labels whose head has the same shape and reads the same of the hidden states.

    Args:
        model: The model; its encoder has its weights already.
        source: The checkpoint folder.
        labels: The labels of the model.
        config: What the model was made from.

    Returns:
        Whether the head was taken over.
    """
    if not (Path(source) / FACTS_NAME).is_file():
        return False
    other = load_checkpoint(source)
    same_task = (other.facts.labels, other.facts.config.train.task) == (labels, config.train.task)
    pools = [part.pool for part in (getattr(model, "pooling", None), getattr(other.model, "pooling", None)) if part]
    own = model.state_dict()
    theirs = {n: w for n, w in other.model.state_dict().items() if n.startswith(("pooling.", "head."))}
    fits = theirs and all(name in own and own[name].shape == weight.shape for name, weight in theirs.items())
    if not (same_task and fits and len(pools) == 2 and pools[0] == pools[1]):
        return False
    model.load_state_dict({**own, **theirs})
    return True


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """Returns the tokenizer files that a folder has, by name."""
    return {name: (folder / name).read_bytes() for name in _TOKENIZER_FILES if (folder / name).is_file()}


def fetch_tokenizer(source: str) -> dict[str, bytes]:
    """Returns the tokenizer files of a checkpoint folder or hub id; a `tokenizer.json` is made when it has none.

    It is made from the files of a WordPiece, BPE or SentencePiece vocabulary, as the family's tokenizer reads them. A
    `vocab.txt` without a `tokenizer_config.json` is of a cased model when it has entries with upper-case letters.

    Raises:
        ConfigError: There is no tokenizer, or none that has the form of a `tokenizer.json`.
        MissingExtraError: Reading a SentencePiece vocabulary needs a package that is not installed.
    """
    import tempfile

    import transformers

    found = read_tokenizer(Path(source)) if Path(source).is_dir() else {}
    if TOKENIZER_NAME in found:
        return found
    if Path(source).is_dir():
        _check_vocabulary(Path(source))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, use_fast=True, **model_options(source), **_letter_case(Path(source))
        )
    # transformers also runs into plain Python errors over files that are damaged or not there.
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{source}: has no tokenizer that can be opened: {reason}") from error
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        made = read_tokenizer(Path(folder))
    if TOKENIZER_NAME not in made:
        raise ConfigError(f"{source}: its {type(tokenizer).__name__} cannot be written as a {TOKENIZER_NAME}.")
    return made


def _check_vocabulary(folder: Path) -> None:
    """Refuses a folder without the files a `tokenizer.json` is made from, or without the package that reads them."""
    found = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not found:
        raise ConfigError(f"{folder}: has no tokenizer that can be opened: none of {', '.join(_VOCABULARIES)}.")
    if found == ["vocab.json"] and not (folder / "merges.txt").is_file():
        raise ConfigError(f"{folder}: has no tokenizer that can be opened: vocab.json without its merges.txt.")
    if all(name.endswith(".model") for name in found):
        require("sentencepiece", extra="sentencepiece", purpose=f"{folder / found[0]}: making a {TOKENIZER_NAME} of it")


def _letter_case(folder: Path) -> dict[str, bool]:
    """Returns the option that keeps letters as they are, where a bare WordPiece vocabulary is a cased one.

    Names in brackets, such as [UNK] and <S>, are in upper case everywhere and say nothing.
    """
    if (folder / "tokenizer_config.json").is_file() or not (folder / "vocab.txt").is_file():
        return {}
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split()
    is_cased = any(token != token.lower() for token in tokens if not re.fullmatch(r"\[.+\]|<.+>", token))
    return {"do_lower_case": False} if is_cased else {}


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """All weights; the encoder's, and those of a head that Hugging Face has too, as Hugging Face names them."""
    model = checkpoint.model
    weights = checkpoint_weights(model.encoder)
    config = checkpoint.facts.config
    renames = _names_of_heads(load_task(config.train.task), model) if _is_ordinary(config) else ()
    for name, tensor in model.state_dict().items():
        if not name.startswith("encoder."):
            weights[rename(name, _reversed(renames)) or name] = tensor
    return weights


def _load_heads(
    model: AdaptiveModel, weights: dict[str, Any], renames: tuple[tuple[str, str], ...], *, where: str
) -> None:
    own = model.state_dict()
    for name in [name for name in own if not name.startswith("encoder.")]:
        stored = name if name in weights else rename(name, _reversed(renames)) or name
        if stored not in weights:
            raise ConfigError(f"{where}: no weight for {name}; was it trained with this method?")
        if weights[stored].shape != own[name].shape:
            raise ConfigError(
                f"{where}: {name}: expected shape {tuple(own[name].shape)}, got {tuple(weights[stored].shape)}."
            )
        own[name] = weights[stored]
    model.load_state_dict(own)


def _is_ordinary(config: RunConfig) -> bool:
    """Says whether a checkpoint is one that Hugging Face has a class for, and reads as we do."""
    reads_as_theirs = config.method.get("pool", "cls") == "cls" or load_task(config.train.task).PER_TOKEN
    return config.method_name == "plain" and reads_as_theirs


def _names_of_heads(task: Task, model: AdaptiveModel) -> tuple[tuple[str, str], ...]:
    """Returns Hugging Face's names and ours of the parts of a head, as prefixes."""
    family = registry.load("edgebert.encoders", model.encoder.config.family)
    renames = SPAN_RENAMES if task.PER_TOKEN else family.HEAD_RENAMES
    return tuple((theirs, f"head.{ours}") for theirs, ours in renames)


def _reversed(renames: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((ours, theirs) for theirs, ours in renames)


def _architecture(checkpoint: Checkpoint) -> str:
    config = checkpoint.facts.config
    if _is_ordinary(config):
        family = registry.load("edgebert.encoders", checkpoint.model.encoder.config.family)
        return f"{family.CLASS_PREFIX}{_class_suffix(load_task(config.train.task))}"
    return f"EdgeBert_{config.method_name}"


def _class_suffix(task: Task) -> str:
    """Returns how the names of the classes of `transformers` for a task end, such as ForQuestionAnswering."""
    return task.AUTO_MODEL.removeprefix("AutoModel")


def _read_facts(path: Path) -> CheckpointFacts:
    data = read_file(path, largest_bytes=LARGEST_SETTINGS_BYTES, error=ConfigError)
    tree, lines = read_settings_tree(data, where=str(path))
    facts = decode(tree, CheckpointFacts, where=str(path), lines=lines)
    decode_config(tree["config"], where=str(path))
    return facts


def _load_foreign(source: str) -> Checkpoint:
    """Opens a Hugging Face classifier, regressor or reader as a `plain` checkpoint."""
    suffix = next((name.partition("For")[2] for name in read_architectures(source)), "")
    tasks = {name: load_task(name) for name in registry.names("edgebert.tasks")}
    fitting = [name for name, task in tasks.items() if _class_suffix(task) == f"For{suffix}"]
    auto_model = tasks[fitting[0] if fitting else "classification"].AUTO_MODEL
    settings, weights = read_model(source, auto_model)
    names = settings.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    task = fitting[0] if len(fitting) == 1 else _task_of(settings.get("problem_type"), labels, where=source)
    labels = tasks[task].LABELS or labels
    encoder = build_encoder(settings, where=source)
    load_weights(encoder, weights, where=source)
    train = foreign_train_config(source, task, encoder, where=source)
    config = RunConfig(method={"name": "plain"}, train=train)
    model = build_model(encoder, config, len(labels))
    _load_heads(model, weights, _names_of_heads(tasks[task], model), where=source)
    points = {"default": OperatingPoint(policy="never", knobs={})}
    facts = CheckpointFacts(labels=labels, seed=None, config=config, operating_points=points)
    return Checkpoint(model, facts, fetch_tokenizer(source))


def _task_of(problem: str | None, labels: tuple[str, ...], *, where: str) -> str:
    """Returns the task of a Hugging Face checkpoint from its `problem_type`; None is a classification.

    Raises:
        ConfigError: It is none of ours, or has another number of outputs.
    """
    if problem is None and len(labels) == 1:
        raise ConfigError(
            f"{where}: has one output and no problem_type, so it may be a value or a relevance; to read it as a value, "
            'write "problem_type": "regression" into its config.json.'
        )
    names = {load_task(name).PROBLEM_TYPE: name for name in registry.names("edgebert.tasks")}
    tasks = {problem: name for problem, name in names.items() if problem is not None}
    problem = problem or "single_label_classification"
    if problem not in tasks:
        raise ConfigError(f"{where}: problem_type: expected {' or '.join(sorted(tasks))}, got {problem}.")
    load_task(tasks[problem]).check_labels(labels, where=where)
    return tasks[problem]
