"""Encoders from and to Hugging Face checkpoints: configuration and weights, under the family's own names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgebert import registry
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.errors import ConfigError
from edgebert.hub import model_options, similar


def build_encoder(settings: dict[str, Any], *, where: str, attention_dropout: float | None = None) -> Encoder:
    """Makes an encoder with new weights from the settings of a `config.json`.

    A family's file is named after its `model_type`, with underscores for hyphens. A given `attention_dropout` takes
    the place of the settings' own.

    Raises:
        ConfigError: The family is not one of `edgebert/encoders`, or cannot be had as the settings ask.
    """
    family = registry.load("edgebert.encoders", str(settings.get("model_type", "")).replace("-", "_"))
    config = family.read_config(settings, where=where)
    if attention_dropout is not None:
        config = replace(config, attention_dropout=attention_dropout)
    return Encoder(config)


def load_encoder(source: str, *, attention_dropout: float | None = None) -> Encoder:
    """Opens the encoder of a checkpoint folder or hub id, whatever head it carries.

    A given `attention_dropout` takes the place of the checkpoint's own.

    Raises:
        ConfigError: Nothing can be opened there, its family is unknown, or weights are missing.
    """
    settings, weights = _read(source, "AutoModel", "is it the encoder it says it is?", optional="pooler.")
    encoder = build_encoder(settings, where=source, attention_dropout=attention_dropout)
    load_weights(encoder, weights, where=source)
    return encoder


def load_weights(encoder: Encoder, weights: dict[str, Tensor], *, where: str) -> None:
    """Copies checkpoint weights, with or without the family's prefix, into an encoder.

    Raises:
        ConfigError: A weight of the encoder is not in the checkpoint, or has another shape.
    """
    family = registry.load("edgebert.encoders", encoder.config.family)
    found = {}
    for name, tensor in weights.items():
        renamed = rename(name.removeprefix(family.PREFIX), family.RENAMES)
        if renamed is not None:
            found[renamed] = tensor
    own = encoder.state_dict()
    for name, tensor in own.items():
        if name not in found:
            raise ConfigError(f"{where}: no weight for {name}; is it a {encoder.config.family} checkpoint?")
        if found[name].shape != tensor.shape:
            raise ConfigError(f"{where}: {name}: expected shape {tuple(tensor.shape)}, got {tuple(found[name].shape)}.")
    encoder.load_state_dict({name: found[name] for name in own})


def checkpoint_weights(encoder: Encoder) -> dict[str, Tensor]:
    """Returns the encoder's weights under the names `transformers` gives them, prefix included."""
    family = registry.load("edgebert.encoders", encoder.config.family)
    back = tuple((ours, theirs) for theirs, ours in family.RENAMES)
    weights = {}
    for name, tensor in encoder.state_dict().items():
        renamed = rename(name, back)
        assert renamed is not None, name
        weights[family.PREFIX + renamed] = tensor
    return weights


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str | None:
    """Applies the first of the (from, to) prefixes that fits a name; None when none does."""
    for old, new in renames:
        pattern = re.escape(old).replace(r"\{layer\}", r"(?P<layer>\d+)")
        match = re.match(pattern, name)
        if match:
            return new.format(layer=match.groupdict().get("layer")) + name[match.end() :]
    return None


def read_architectures(source: str) -> list[str]:
    """Returns the classes of `transformers` that a checkpoint says it is of; none where it does not say, or is none."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(source, **model_options(source)).architectures or []
    except (OSError, ValueError, KeyError):
        return []  # opening it says what is wrong


def read_model(source: str, auto_class: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads settings and weights of a Hugging Face checkpoint with a head.

    Args:
        source: A checkpoint folder or hub id.
        auto_class: The class of `transformers` that opens it, such as AutoModelForSequenceClassification.

    Raises:
        ConfigError: It cannot be opened as one.
    """
    kinds = {"AutoModelForSequenceClassification": "classifier"}
    return _read(source, auto_class, f"it is no trained {kinds.get(auto_class, auto_class)}")


def _read(
    source: str, auto_class: str, purpose: str, *, optional: str = "position_ids"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Opens a checkpoint with `transformers`; made-up weights are an error, but for those of the optional part."""
    import transformers
    from safetensors import SafetensorError

    options = model_options(source)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, loading = getattr(transformers, auto_class).from_pretrained(source, output_loading_info=True, **options)
    # A RuntimeError, where the weights are not those the settings describe.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if Path(source).is_dir() else similar(source)
        raise ConfigError(f"{source}: cannot be opened as a checkpoint folder or hub id: {reason}{hint}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    made_up = sorted(loading["missing_keys"])
    missing = [name for name in made_up if "position_ids" not in name and not name.startswith(optional)]
    if missing:
        raise ConfigError(f"{source}: has no weights for {', '.join(missing[:4])}; {purpose}.")
    return model.config.to_dict(), {name: tensor.float() for name, tensor in model.state_dict().items()}


def settings_of(config: EncoderConfig) -> dict[str, Any]:
    """Returns the `config.json` settings of an encoder's shape."""
    settings: dict[str, Any] = registry.load("edgebert.encoders", config.family).write_config(config)
    return settings
