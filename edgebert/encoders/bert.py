"""The BERT family: BERT, MiniLM and TinyBERT checkpoints (Devlin et al., 2019, https://arxiv.org/abs/1810.04805).

Equal to `transformers.BertModel` hidden state by hidden state; weights are stored under its names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import ACTIVATIONS, EncoderConfig
from edgebert.errors import ConfigError, suggestion

PREFIX = "bert."
CLASSIFIER = "BertForSequenceClassification"

RENAMES = (
    ("embeddings.word_embeddings.", "embeddings.word."),
    ("embeddings.position_embeddings.", "embeddings.position."),
    ("embeddings.token_type_embeddings.", "embeddings.token_type."),
    ("embeddings.LayerNorm.", "embeddings.norm."),
    ("encoder.layer.{layer}.attention.self.query.", "layers.{layer}.attention.query."),
    ("encoder.layer.{layer}.attention.self.key.", "layers.{layer}.attention.key."),
    ("encoder.layer.{layer}.attention.self.value.", "layers.{layer}.attention.value."),
    ("encoder.layer.{layer}.attention.output.dense.", "layers.{layer}.attention.output."),
    ("encoder.layer.{layer}.attention.output.LayerNorm.", "layers.{layer}.attention.norm."),
    ("encoder.layer.{layer}.intermediate.dense.", "layers.{layer}.feed_forward.expand."),
    ("encoder.layer.{layer}.output.dense.", "layers.{layer}.feed_forward.contract."),
    ("encoder.layer.{layer}.output.LayerNorm.", "layers.{layer}.feed_forward.norm."),
)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("bert.pooler.dense.", "dense."), ("classifier.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: The activation or the kind of position embedding is not one this family has.
    """
    activation = settings.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{where}: hidden_act: unknown {activation!r}.{suggestion(activation, ACTIVATIONS)}")
    positions = settings.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise ConfigError(f"{where}: position_embedding_type: expected absolute, got {positions}.")
    return EncoderConfig(
        family="bert",
        layers=settings["num_hidden_layers"],
        hidden_size=settings["hidden_size"],
        heads=settings["num_attention_heads"],
        feed_forward_size=settings["intermediate_size"],
        vocabulary_size=settings["vocab_size"],
        max_positions=settings.get("max_position_embeddings", 512),
        token_types=settings.get("type_vocab_size", 2),
        activation=activation,
        norm_epsilon=settings.get("layer_norm_eps", 1e-12),
        hidden_dropout=settings.get("hidden_dropout_prob", 0.1),
        attention_dropout=settings.get("attention_probs_dropout_prob", 0.1),
        pad_token_id=settings.get("pad_token_id") or 0,
    )


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as a `BertModel`."""
    return {
        "model_type": "bert",
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_size,
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.token_types,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "pad_token_id": config.pad_token_id,
    }


class ClassificationHead(nn.Module):
    """The family's own head: the first token, a tanh layer, and a linear classifier."""

    def __init__(self, config: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.hidden_size, n_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of one vector per row, float [batch, hidden]."""
        return self.classifier(self.dropout(torch.tanh(self.dense(pooled))))
