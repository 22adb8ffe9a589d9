"""What a naming's file says: how its settings and tensors become those of one of our methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import Tensor

from edgebert import registry
from edgebert.errors import ConfigError

Renames = tuple[tuple[str, str], ...]
"""Pairs of (the source's name, ours), both as prefixes; the first that fits counts. `{layer}` is a number."""

BUFFERS = ((r"(.+\.)?embeddings\.(position_ids|token_type_ids)", "a constant that needs no storing"),)
"""Tensors of any checkpoint of `transformers` that say nothing, as pairs of an expression and the reason."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """How one checkpoint becomes ours.

    Attributes:
        encoder: The encoder's settings, as a `config.json` of `transformers` holds them.
        method: The section `method` of a run configuration.
        reason: Why this method.
        renames: The source's names and ours.
        ignored: Tensors without a place that need none: pairs of an expression of the whole name, and why.
        label_tensor: The source's name of a tensor with one row for each label.
        adapt_tensor: Changes a tensor of the source, given its name there, to what our model computes with.
        adapt_tokenizer: Changes a `tokenizer.json` to give the inputs the model was trained on.
        notes: What else a user should know.
    """

    encoder: dict[str, Any]
    method: dict[str, Any]
    reason: str
    renames: Renames
    ignored: tuple[tuple[str, str], ...]
    label_tensor: str
    adapt_tensor: Callable[[str, Tensor], Tensor] = field(default=lambda name, tensor: tensor)
    adapt_tokenizer: Callable[[bytes], bytes] = field(default=lambda data: data)
    notes: tuple[str, ...] = ()


def family_of(settings: dict[str, Any]) -> ModuleType:
    """Returns the encoder family that a `config.json` names.

    Raises:
        ConfigError: It is none of ours.
    """
    name = settings.get("model_type")
    if not isinstance(name, str):
        known = ", ".join(registry.names("edgebert.encoders"))
        raise ConfigError(
            f"config.json: model_type: expected one of {known}, got {name!r}; add it (files of transformers before "
            "2.2, such as DeeBERT's own, have none)."
        )
    return registry.load("edgebert.encoders", name.replace("-", "_"))


def last_layer(settings: dict[str, Any], *, where: str) -> int:
    """Returns the number of the last layer, counted from 0.

    Raises:
        ConfigError: The settings do not say how many layers there are.
    """
    layers = settings.get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        raise ConfigError(f"{where}: num_hidden_layers: expected a number of 1 or more, got {layers!r}.")
    return layers - 1


def encoder_renames(family: ModuleType, prefix: str) -> Renames:
    """Returns the names of a family's encoder, which the source keeps under a prefix such as `bert.`."""
    return tuple((prefix + theirs, f"encoder.{ours}") for theirs, ours in family.RENAMES)


def pooler_name(family: ModuleType) -> str:
    """Returns the name of the linear map in the pooler of a family's model, such as `bert.pooler.dense.`."""
    start = f"{family.PREFIX}pooler."
    return next((theirs for theirs, _ in family.HEAD_RENAMES if theirs.startswith(start)), f"{start}dense.")
