"""What most families' Hugging Face checkpoints have in common: names of settings and of layer weights."""

from __future__ import annotations

from typing import Any

from edgebert.arguments import check_count, check_name
from edgebert.encoders._blocks import ACTIVATIONS, EncoderConfig
from edgebert.errors import ConfigError, suggestion
from edgebert.printable import shown

EMBEDDING_RENAMES = (
    ("embeddings.word_embeddings.", "embeddings.word."),
    ("embeddings.position_embeddings.", "embeddings.position."),
    ("embeddings.token_type_embeddings.", "embeddings.token_type."),
    ("embeddings.LayerNorm.", "embeddings.norm."),
)
LAYER_RENAMES = (
    ("encoder.layer.{layer}.attention.self.query.", "layers.{layer}.attention.query."),
    ("encoder.layer.{layer}.attention.self.key.", "layers.{layer}.attention.key."),
    ("encoder.layer.{layer}.attention.self.value.", "layers.{layer}.attention.value."),
    ("encoder.layer.{layer}.attention.output.dense.", "layers.{layer}.attention.output."),
    ("encoder.layer.{layer}.attention.output.LayerNorm.", "layers.{layer}.attention.norm."),
    ("encoder.layer.{layer}.intermediate.dense.", "layers.{layer}.feed_forward.expand."),
    ("encoder.layer.{layer}.output.dense.", "layers.{layer}.feed_forward.contract."),
    ("encoder.layer.{layer}.output.LayerNorm.", "layers.{layer}.feed_forward.norm."),
)

COMMON = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward_size",
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "pad_token_id": "pad_token_id",
}
"""The checkpoint's name and ours of the settings that a family reads and writes as they are."""

_RANGES = {
    "layers": (1, 1024),
    "hidden_size": (1, 2**15),
    "heads": (1, 2**15),
    "feed_forward_size": (1, 2**17),
    "vocabulary_size": (1, 2**22),
    "max_positions": (1, 2**20),
    "token_types": (0, 2**10),
    "pad_token_id": (0, 2**22),
    "embedding_size": (1, 2**15),
}
"""The smallest and the largest of each whole number; other numbers are shares and small ones."""


def read_settings(
    settings: dict[str, Any],
    names: dict[str, str],
    *,
    family: str,
    where: str,
    defaults: dict[str, Any] | None = None,
) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Args:
        settings: The file's content.
        names: The checkpoint's name and ours of each setting, such as `COMMON`.
        family: The file in `edgebert/encoders`.
        where: What messages call the file.
        defaults: Under our names, what the family takes for a setting that is not there or null, and what it has no
            setting for; all others are `EncoderConfig`'s own.

    Raises:
        ConfigError: A setting without a default is missing, the activation is unknown, positions are not absolute, or
            it is a decoder.
    """
    given = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None}
    theirs = {ours: name for name, ours in names.items()}
    for name in ("layers", "hidden_size", "heads", "feed_forward_size", "vocabulary_size"):
        if name not in given:
            raise ConfigError(f"{where}: {theirs[name]}: expected a number, got none; is it a {family} checkpoint?")
    for name, value in given.items():
        _check(value, name, f"{where}: {theirs[name]}")
    shape = EncoderConfig(family=family, **{**(defaults or {}), **given})
    size, heads, padding = shape.hidden_size, shape.heads, shape.pad_token_id
    if size % heads:
        raise ConfigError(f"{where}: {theirs['hidden_size']}: expected a multiple of {heads} heads, got {size}.")
    if padding >= shape.vocabulary_size:
        most = shape.vocabulary_size - 1
        raise ConfigError(f"{where}: {theirs['pad_token_id']}: expected an id up to {most}, got {padding}.")
    if shape.activation not in ACTIVATIONS:
        known = suggestion(str(shape.activation), ACTIVATIONS)
        raise ConfigError(f"{where}: {theirs['activation']}: unknown {shape.activation!r}.{known}")
    positions = settings.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise ConfigError(f"{where}: position_embedding_type: expected absolute, got {positions}.")
    for name in ("is_decoder", "add_cross_attention"):
        if settings.get(name):
            raise ConfigError(f"{where}: {name}: expected false, got true; only encoders are supported.")
    return shape


def _check(value: object, name: str, where: str) -> None:
    """Refuses a setting of another kind or size than any encoder's, before memory is asked for.

    Raises:
        ConfigError: It is.
    """
    if name == "activation":
        check_name(where, value)
    elif name in _RANGES:
        least, most = _RANGES[name]
        check_count(where, value, least=least, most=most)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{where}: expected a number from 0 to less than 1, got {shown(value)}.")


def write_settings(config: EncoderConfig, names: dict[str, str], *, model_type: str) -> dict[str, Any]:
    """Returns an encoder's shape as settings of a `config.json`; the inverse of `read_settings`."""
    return {"model_type": model_type, **{theirs: getattr(config, ours) for theirs, ours in names.items()}}
