"""The RoBERTa family (Liu et al., 2019, https://arxiv.org/abs/1907.11692).

Equal to `transformers.RobertaModel` hidden state by hidden state; weights are stored under its names. Positions count
the ids that are not padding, from the id of padding on, so that the position table has that many rows more than a
text may have tokens. There is one segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._settings import COMMON, EMBEDDING_RENAMES, LAYER_RENAMES, read_settings, write_settings
from edgebert.errors import ConfigError

PREFIX = "roberta."
CLASS_PREFIX = "Roberta"

RENAMES = (*EMBEDDING_RENAMES, *LAYER_RENAMES)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("classifier.dense.", "dense."), ("classifier.out_proj.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""


def read_config(settings: dict[str, Any], *, where: str, family: str = "roberta") -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: It asks for something this family does not have (see `read_settings`), or no position is left.
    """
    pad_token_id = 1 if settings.get("pad_token_id") is None else settings["pad_token_id"]
    positions = settings.get("max_position_embeddings") or 512
    if positions <= pad_token_id + 1:
        raise ConfigError(f"{where}: max_position_embeddings: expected more than pad_token_id + 1, got {positions}.")
    settings = {**settings, "pad_token_id": pad_token_id, "max_position_embeddings": positions - pad_token_id - 1}
    return read_settings(settings, COMMON, family=family, where=where, defaults={"positions_skip_padding": True})


def write_config(config: EncoderConfig, *, model_type: str = "roberta") -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as a `RobertaModel`."""
    settings = write_settings(config, COMMON, model_type=model_type)
    return {**settings, "max_position_embeddings": config.max_positions + config.pad_token_id + 1}


class ClassificationHead(nn.Module):
    """The family's own head: the first token, a tanh layer, and a linear classifier, with dropout before each."""

    def __init__(self, config: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, n_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of one vector per row, float [batch, hidden]."""
        return self.classifier(self.dropout(torch.tanh(self.dense(self.dropout(pooled)))))
