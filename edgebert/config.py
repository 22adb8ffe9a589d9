"""The typed run configuration and its strict reader.

A file in `export_configs/` is complete on its own. Unknown keys, wrong types and bad values are refused with the
file, the key and what to write instead; `--set a.b=c` overrides one key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from edgebert.errors import ConfigError, suggestion
from edgebert.printable import shown
from edgebert.read import LARGEST_SETTINGS_BYTES, read_file
from edgebert.yaml_tree import Tree, read_yaml

T = TypeVar("T")

_DEEPEST_KEY = 8


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `train`: what is trained from, on what, and how fast.

    Attributes:
        model: Checkpoint folder or hub id of the encoder to start from. Of a checkpoint of edgebert for the same labels
            the head is taken too, where the method has the same; give it the same `tuning_rows` and `held_out`, so
            that what it was trained on is not what is tuned on.
        data: Folder with train and validation files, or a hub id. None: must be given on the command line.
        task: Name of a file in `edgebert/tasks`.
        task_settings: The task's settings; their type is the task file's `Config`.
        columns: Which column of the data is which field, such as {"text": "sentence"}.
        labels: Label names in the order of the scores; F1 of two labels is that of the second. None sorts them. Of a
            regression: the one name of its value; None takes the label column's.
        max_length: Longest input in tokens, special tokens included.
        batch_size: Rows per optimizer step on one device.
        stage_epochs: Epochs of each of the method's stages, in order.
        learning_rate: Peak learning rate of the encoder.
        head_learning_rate_factor: Heads, exits and units learn this many times faster than the encoder.
        warmup_share: Share of all steps with a rising learning rate, 0 to 1.
        weight_decay: Decoupled weight decay of the weights that are not biases or norms.
        tuning_rows: Examples held out of train to choose the default operating point; questions over one passage go
            together, and may be some more, as may equal texts.
        held_out: What is held out: any `rows`; `distinct_texts`, any too, but of equal texts all or none, so that
            none of them is trained on; or only `whole_texts`, those that are no part of another, and then what is part
            of one of them alone is not trained on either. For data whose training rows are parts of its texts, as
            SST-2's are.
        max_drop_points: The default operating point may lose this much of the full-depth metric on those rows,
            in hundredths.
        calibration_rows: Further examples held out of train, for methods that count something after training.
        attention_dropout: Dropout of attention probabilities in training, 0 to 1; None takes the model's own. At 0 a
            step on 400 tokens was measured twice as fast on a CPU, whose fused attention knows no dropout.
        precision: `auto` uses bf16 where the processor has it, else fp32.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    data: str | None = None
    task: str = "classification"
    task_settings: dict[str, Any] = msgspec.field(default_factory=dict)
    columns: dict[str, str] = msgspec.field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    max_length: int = 128
    batch_size: int = 32
    stage_epochs: tuple[float, ...] = (1.0,)
    learning_rate: float = 5.0e-5
    head_learning_rate_factor: float = 10.0
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    tuning_rows: int = 2000
    held_out: Literal["rows", "distinct_texts", "whole_texts"] = "rows"
    max_drop_points: float = 0.5
    calibration_rows: int = 0
    attention_dropout: float | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def __post_init__(self) -> None:
        _check(self.max_length >= 4, "max_length", "4 or more", self.max_length)
        _check(self.batch_size >= 1, "batch_size", "1 or more", self.batch_size)
        epochs = self.stage_epochs
        _check(bool(epochs) and all(0 <= n < math.inf for n in epochs), "stage_epochs", "numbers of 0 or more", epochs)
        for name in ("learning_rate", "head_learning_rate_factor"):
            _check(0 < getattr(self, name) < math.inf, name, "a number of more than 0", getattr(self, name))
        _check(0 <= self.weight_decay < math.inf, "weight_decay", "a number of 0 or more", self.weight_decay)
        _check(0 <= self.warmup_share <= 1, "warmup_share", "0 to 1", self.warmup_share)
        dropout = self.attention_dropout
        _check(dropout is None or 0 <= dropout < 1, "attention_dropout", "0 to less than 1", dropout)
        _check(self.tuning_rows >= 1, "tuning_rows", "1 or more", self.tuning_rows)
        _check(self.max_drop_points >= 0, "max_drop_points", "0 or more", self.max_drop_points)
        _check(self.calibration_rows >= 0, "calibration_rows", "0 or more", self.calibration_rows)


class ExportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `export`: how the graphs are made.

    Attributes:
        opset: ONNX operator set of every graph.
        precision: `fp16` halves weights and hidden states, for GPUs; what decides stays fp32.
        link: Put an exit that every row needs into the graph of the layer before it: one call instead of two.
        whole_model: Write `onnx/model.onnx` too, for methods that have a whole-model form.
        verify_samples: Random inputs on which torch and the bundle are compared before the bundle is published.
        tolerance: Largest absolute difference of any answer that the comparison allows; of single values, relative to
            the largest (at least 1).
    """

    opset: int = 23
    precision: Literal["fp32", "fp16"] = "fp32"
    link: bool = True
    whole_model: bool = True
    verify_samples: int = 64
    tolerance: float = 1.0e-4

    def __post_init__(self) -> None:
        _check(18 <= self.opset <= 23, "opset", "18 to 23", self.opset)
        _check(1 <= self.verify_samples <= 1_000_000, "verify_samples", "1 to 1000000", self.verify_samples)
        _check(self.tolerance > 0, "tolerance", "more than 0", self.tolerance)


class QuantizeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `quantize`: how a bundle is made smaller and faster.

    Attributes:
        precision: Of the weights.
        mode: `dynamic` measures the activations' scale at every call, `static` takes it from calibration texts,
            `weight-only` leaves activations alone.
        backend: Name of a file in `edgebert/quantize`.
        per_channel: A scale for each output of a matrix, in place of one for all of it.
        exclude: Graphs to leave in fp32, as patterns of their path, such as `*layer_00*`.
        target: The processor it will run on, `auto` for this one. Those without 8-bit dot products get weights of 7
            bits, which cannot overflow there.
        calibration_texts: How many texts `static` is calibrated on.
        max_drop: Points of the metric, hundredths, that may be lost; needs data to measure on. None: anything goes.
        block_size: Weights that share a scale in `weight-only`.
        smooth_quant: SmoothQuant before `static`, where the backend has it.
    """

    precision: Literal["int8", "int4"] = "int8"
    mode: Literal["dynamic", "static", "weight-only"] = "dynamic"
    backend: str = "onnxruntime"
    per_channel: bool = True
    exclude: tuple[str, ...] = ()
    target: Literal["auto", "avx2", "avx512", "avx512_vnni", "arm64"] = "auto"
    calibration_texts: int = 256
    max_drop: float | None = None
    block_size: int = 32
    smooth_quant: bool = False

    def __post_init__(self) -> None:
        _check(self.calibration_texts >= 1, "calibration_texts", "1 or more", self.calibration_texts)
        _check(self.max_drop is None or self.max_drop >= 0, "max_drop", "0 or more", self.max_drop)
        sizes = (16, 32, 64, 128, 256)
        _check(self.block_size in sizes, "block_size", f"one of {sizes}", self.block_size)
        if self.precision == "int4":
            _check(self.mode == "weight-only", "mode", "weight-only with precision int4", self.mode)
        if self.smooth_quant:
            _check(self.mode == "static", "smooth_quant", "mode static", self.mode)


class TuneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `tune`: how operating points are chosen and timed.

    Attributes:
        accurate_drop_points: How much of the full-depth metric the point `accurate` may lose, in hundredths.
        balanced_drop_points: How much `balanced` may lose.
        fast_drop_points: How much `fast` may lose.
        latency_texts: Most texts that are timed, evenly spaced among all.
        latency_repeats: How often each of them; the median counts.
        latency_points: Most settings that are timed for a budget of time, evenly spaced in cost.
    """

    accurate_drop_points: float = 0.2
    balanced_drop_points: float = 1.0
    fast_drop_points: float = 2.5
    latency_texts: int = 100
    latency_repeats: int = 5
    latency_points: int = 16

    def __post_init__(self) -> None:
        for name in ("accurate_drop_points", "balanced_drop_points", "fast_drop_points"):
            _check(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name, least in (("latency_texts", 1), ("latency_repeats", 1), ("latency_points", 2)):
            _check(getattr(self, name) >= least, name, f"{least} or more", getattr(self, name))


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file.

    Attributes:
        method: The method's name under `name`, and its settings; their type is the method file's `Config`.
        train: How it is trained.
        export: How it is exported.
        quantize: How its bundle is quantized.
        tune: How its operating points are chosen after export.
    """

    method: dict[str, Any]
    train: TrainConfig = msgspec.field(default_factory=TrainConfig)
    export: ExportConfig = msgspec.field(default_factory=ExportConfig)
    quantize: QuantizeConfig = msgspec.field(default_factory=QuantizeConfig)
    tune: TuneConfig = msgspec.field(default_factory=TuneConfig)

    @property
    def method_name(self) -> str:
        """The method's name, one of the files in `edgebert/methods`."""
        return str(self.method["name"])

    def method_settings(self) -> dict[str, Any]:
        """Returns the method's settings without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Reads one configuration file.

    Args:
        path: A YAML file.
        overrides: `section.key=value` texts, applied in order; the value is read as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, or a key or value in it is wrong.
    """
    data = read_file(path, largest_bytes=LARGEST_SETTINGS_BYTES, error=ConfigError)
    tree, lines = read_settings_tree(data, where=str(path))
    is_sound = _is_sound(tree)
    for override in overrides:
        changed = _apply(tree, override)
        lines = {key: line for key, line in lines.items() if not f"{key}.".startswith(f"{changed}.")}
    if overrides and is_sound:  # then only they can be wrong
        return decode_config(tree, where=", ".join(f"--set {override:.80}" for override in overrides))
    return decode_config(tree, where=str(path), lines=lines)


def _is_sound(tree: Any) -> bool:
    try:
        decode_config(tree, where="")
    except ConfigError:
        return False
    return True


def read_settings_tree(data: bytes, *, where: str) -> Tree:
    """Reads a YAML file of sections, such as a checkpoint or bundle carries.

    Raises:
        ConfigError: It is none.
    """
    tree = read_yaml(data, where=where)
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{where}: expected sections by name, got {shown(tree.value)}.")
    return tree


def decode_config(tree: Any, *, where: str, lines: Mapping[str, int] | None = None) -> RunConfig:
    """Turns plain data into a checked configuration; `where` names its source in messages, `lines` its values' lines.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    config = decode(tree, RunConfig, where=where, lines=lines)
    if not isinstance(config.method.get("name"), str):
        line = _line_of("method.name", lines or {})
        raise ConfigError(f"{where}{line}: method.name: expected the name of a method, such as dact_bert.")
    return config


def decode(tree: Any, kind: type[T], *, where: str, prefix: str = "", lines: Mapping[str, int] | None = None) -> T:
    """Turns plain data into a checked value of a type.

    Args:
        tree: Plain data, as YAML or JSON gives it.
        kind: The struct to make.
        where: The source, for messages.
        prefix: Path of the data inside its source, such as `method.`.
        lines: Where values stand in the source, by their path in the data.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    try:
        return msgspec.convert(tree, kind, strict=True)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: expected text, got the lone surrogate in {error.object!r:.40}.") from error
    except msgspec.ValidationError as error:
        key, message = _explain(str(error), tree, kind, prefix)
        raise ConfigError(f"{where}{_line_of(key, lines or {})}: {message}") from error


def _line_of(key: str, lines: Mapping[str, int]) -> str:
    """Returns the line of a value, or of the nearest around it, as it is put behind a file's name."""
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return f":{lines[key]}" if key else ""


def _explain(message: str, tree: Any, kind: Any, prefix: str) -> tuple[str, str]:
    """Rewords a validation message: the key's path first, and the nearest known key when it is unknown.

    Returns:
        The path of the key inside the data, and the message.
    """
    text, _, path = message.replace(" - at `key` in `$", " as a key - at `$").partition(" - at `$")
    path = path.rstrip("`").lstrip(".").replace("[...]", "[]")
    if "unknown field" in text:
        name = text[text.index("`") + 1 : text.rindex("`")]
        full = f"{path}.{name}" if path else name
        return full, f"unknown key {prefix + full!r:.200}.{suggestion(name, _fields_at(kind, path))}"
    value = tree
    for part in [part for part in path.split(".") if part and "[" not in part]:
        value = value.get(part) if isinstance(value, dict) else None
    hint = ""
    if isinstance(value, str) and "float" in text:
        hint = f" {value!r:.40}"
    own = re.match(r"(\w+): ", text)  # a struct's own check names the field
    key = ".".join(part for part in (path, own[1] if own else "") if part)
    if path:
        return key, f"{prefix}{path}: {text[0].lower()}{text[1:]}{hint}"
    return key, f"{prefix}{text}" if own else f"{text[0].lower()}{text[1:]}"


def _fields_at(kind: Any, path: str) -> list[str]:
    """Returns the fields that the struct at a path has."""
    for part in [part for part in path.split(".") if part]:
        key, is_entry, _ = part.partition("[")
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[key]
        kind = get_args(kind)[-1] if is_entry else kind  # dict[str, value]
    return [field.name for field in msgspec.structs.fields(kind)]


def _apply(tree: dict[str, Any], override: str) -> str:
    """Sets one key of the tree from a `section.key=value` text; returns the key's path."""
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts) or len(parts) > _DEEPEST_KEY:
        raise ConfigError(f"--set {override:.80}: expected key=value, such as train.batch_size=16.")
    node: Any = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override:.80}: {part!r} is a value, not a section.")
    node[parts[-1]] = _read_value(text, override)
    return path


def with_train(config: RunConfig, **changes: object) -> RunConfig:
    """Returns the configuration with some keys of its section `train` replaced; None leaves one as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    return msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, **given))


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `knob=value` and reads the value as YAML.

    Raises:
        ConfigError: There is no `=`, or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text:.80}: expected knob=value, such as threshold=0.9.")
    return name, _read_value(value, text)


def _read_value(text: str, setting: str) -> Any:
    return read_yaml(text, where=f"--set {setting:.80}").value


def _check(is_valid: bool, key: str, expected: str, got: object) -> None:
    if not is_valid:
        raise ValueError(f"{key}: expected {expected}, got {got}")
