"""The ALBERT family (Lan et al., 2020, https://arxiv.org/abs/1909.11942).

Equal to `transformers.AlbertModel` hidden state by hidden state; weights are stored under its names. Layers share
weights (`num_hidden_groups` different ones, usually 1): they are one module used many times, stored and exported once.
Embeddings are narrower than the layers and widened by a linear map.

One departure, in training only: the output of the feed-forward part has dropout, as in the other families.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._settings import COMMON, EMBEDDING_RENAMES, read_settings, write_settings
from edgebert.errors import ConfigError

PREFIX = "albert."
CLASS_PREFIX = "Albert"

_LAYER = "encoder.albert_layer_groups.{layer}.albert_layers.0."
RENAMES = (
    *EMBEDDING_RENAMES,
    ("encoder.embedding_hidden_mapping_in.", "embeddings.widen."),
    (f"{_LAYER}attention.query.", "layers.{layer}.attention.query."),
    (f"{_LAYER}attention.key.", "layers.{layer}.attention.key."),
    (f"{_LAYER}attention.value.", "layers.{layer}.attention.value."),
    (f"{_LAYER}attention.dense.", "layers.{layer}.attention.output."),
    (f"{_LAYER}attention.LayerNorm.", "layers.{layer}.attention.norm."),
    (f"{_LAYER}ffn.", "layers.{layer}.feed_forward.expand."),
    (f"{_LAYER}ffn_output.", "layers.{layer}.feed_forward.contract."),
    (f"{_LAYER}full_layer_layer_norm.", "layers.{layer}.feed_forward.norm."),
)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("albert.pooler.", "dense."), ("classifier.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""

SETTINGS = {
    **{theirs: ours for theirs, ours in COMMON.items() if ours != "classifier_dropout"},
    "classifier_dropout_prob": "classifier_dropout",
    "embedding_size": "embedding_size",
}
"""The checkpoint's name and ours of each setting."""

_DEFAULTS = {
    "activation": "gelu_new",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.1,
    "embedding_size": 128,
}


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: It asks for something this family does not have (see `read_settings`), a group holds several
            layers, or the groups are not of one size.
    """
    groups = settings.get("num_hidden_groups") or 1
    inner = settings.get("inner_group_num") or 1
    if inner != 1:
        raise ConfigError(
            f"{where}: inner_group_num: expected 1, got {inner}; more layers in a group are not supported."
        )
    layers = settings.get("num_hidden_layers") or groups
    if layers % groups:
        raise ConfigError(f"{where}: num_hidden_groups: expected a divisor of the {layers} layers, got {groups}.")
    defaults = {**_DEFAULTS, "shared_layers": layers // groups}
    return read_settings(settings, SETTINGS, family="albert", where=where, defaults=defaults)


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as an `AlbertModel`."""
    return {
        **write_settings(config, SETTINGS, model_type="albert"),
        "embedding_size": config.embedding_size or config.hidden_size,
        "classifier_dropout_prob": config.head_dropout,
        "num_hidden_groups": config.different_layers,
        "inner_group_num": 1,
    }


class ClassificationHead(nn.Module):
    """The family's own head: the first token, a tanh layer, and a linear classifier."""

    def __init__(self, config: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, n_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of one vector per row, float [batch, hidden]."""
        return self.classifier(self.dropout(torch.tanh(self.dense(pooled))))
