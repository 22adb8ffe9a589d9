"""The ELECTRA family, its discriminator (Clark et al., 2020, https://arxiv.org/abs/2003.10555).

Equal to `transformers.ElectraModel` hidden state by hidden state; weights are stored under its names. Embeddings may
be narrower than the layers, and are then widened by a linear map. There is no pooler.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._settings import COMMON, EMBEDDING_RENAMES, LAYER_RENAMES, read_settings, write_settings

PREFIX = "electra."
CLASS_PREFIX = "Electra"

RENAMES = (*EMBEDDING_RENAMES, ("embeddings_project.", "embeddings.widen."), *LAYER_RENAMES)
"""Pairs of (the checkpoint's name, our name), both as prefixes inside the encoder; read in either direction."""

HEAD_RENAMES = (("classifier.dense.", "dense."), ("classifier.out_proj.", "classifier."))
"""The same for the family's own classification head, from the whole checkpoint's names."""


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: It asks for something this family does not have; see `read_settings`.
    """
    width = settings.get("embedding_size") or 128
    defaults = {"embedding_size": None if width == settings.get("hidden_size") else width}
    return read_settings(settings, COMMON, family="electra", where=where, defaults=defaults)


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as an `ElectraModel`."""
    settings = write_settings(config, COMMON, model_type="electra")
    return {**settings, "embedding_size": config.embedding_size or config.hidden_size}


class ClassificationHead(nn.Module):
    """The family's own head: the first token, a GELU layer, and a linear classifier, with dropout before each."""

    def __init__(self, config: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, n_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of one vector per row, float [batch, hidden]."""
        return self.classifier(self.dropout(functional.gelu(self.dense(self.dropout(pooled)))))
