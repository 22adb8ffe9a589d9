"""The BERT family: BERT, MiniLM and TinyBERT checkpoints (Devlin et al., 2019, https://arxiv.org/abs/1810.04805).

Equal to `transformers.BertModel` hidden state by hidden state; weights are stored under its names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._settings import COMMON, EMBEDDING_RENAMES, LAYER_RENAMES, read_settings, write_settings

PREFIX = "bert."
CLASS_PREFIX = "Bert"

RENAMES = (*EMBEDDING_RENAMES, *LAYER_RENAMES)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("bert.pooler.dense.", "dense."), ("classifier.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: It asks for something this family does not have; see `read_settings`.
    """
    return read_settings(settings, COMMON, family="bert", where=where)


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as a `BertModel`."""
    return write_settings(config, COMMON, model_type="bert")


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
