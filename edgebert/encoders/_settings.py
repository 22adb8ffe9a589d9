"""What most families' Hugging Face checkpoints have in common: names of settings and of layer weights."""

from __future__ import annotations

from typing import Any

from edgebert.encoders._blocks import ACTIVATIONS, EncoderConfig
from edgebert.errors import ConfigError, suggestion

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
    shape = EncoderConfig(family=family, **{**(defaults or {}), **given})
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


def write_settings(config: EncoderConfig, names: dict[str, str], *, model_type: str) -> dict[str, Any]:
    """Returns an encoder's shape as settings of a `config.json`; the inverse of `read_settings`."""
    return {"model_type": model_type, **{theirs: getattr(config, ours) for theirs, ours in names.items()}}
