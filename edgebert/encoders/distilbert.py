"""The DistilBERT family (Sanh et al., 2019, https://arxiv.org/abs/1910.01108).

Equal to `transformers.DistilBertModel` hidden state by hidden state; weights are stored under its names. There are no
segments. `sinusoidal_pos_embds` only says how the position table was first filled, and is not kept.

One departure, in training only: the output of attention has dropout, as in the other families.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._settings import EMBEDDING_RENAMES, read_settings, write_settings

PREFIX = "distilbert."
CLASS_PREFIX = "DistilBert"

RENAMES = (
    *(pair for pair in EMBEDDING_RENAMES if "token_type" not in pair[0]),
    ("transformer.layer.{layer}.attention.q_lin.", "layers.{layer}.attention.query."),
    ("transformer.layer.{layer}.attention.k_lin.", "layers.{layer}.attention.key."),
    ("transformer.layer.{layer}.attention.v_lin.", "layers.{layer}.attention.value."),
    ("transformer.layer.{layer}.attention.out_lin.", "layers.{layer}.attention.output."),
    ("transformer.layer.{layer}.sa_layer_norm.", "layers.{layer}.attention.norm."),
    ("transformer.layer.{layer}.ffn.lin1.", "layers.{layer}.feed_forward.expand."),
    ("transformer.layer.{layer}.ffn.lin2.", "layers.{layer}.feed_forward.contract."),
    ("transformer.layer.{layer}.output_layer_norm.", "layers.{layer}.feed_forward.norm."),
)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("pre_classifier.", "dense."), ("classifier.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""

SETTINGS = {
    "n_layers": "layers",
    "dim": "hidden_size",
    "n_heads": "heads",
    "hidden_dim": "feed_forward_size",
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "max_positions",
    "activation": "activation",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "seq_classif_dropout": "classifier_dropout",
    "pad_token_id": "pad_token_id",
}
"""The checkpoint's name and ours of each setting."""


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: It asks for something this family does not have; see `read_settings`.
    """
    defaults = {"token_types": 0, "classifier_dropout": 0.2}
    return read_settings(settings, SETTINGS, family="distilbert", where=where, defaults=defaults)


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as a `DistilBertModel`."""
    return {**write_settings(config, SETTINGS, model_type="distilbert"), "seq_classif_dropout": config.head_dropout}


class ClassificationHead(nn.Module):
    """The family's own head: the first token, a ReLU layer, and a linear classifier."""

    def __init__(self, config: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, n_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of one vector per row, float [batch, hidden]."""
        return self.classifier(self.dropout(functional.relu(self.dense(pooled))))
