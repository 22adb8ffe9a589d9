"""The XLM-R family (Conneau et al., 2020, https://arxiv.org/abs/1911.02116): RoBERTa in many languages.

Equal to `transformers.XLMRobertaModel` hidden state by hidden state; weights are stored under its names, which are
RoBERTa's.
"""

from __future__ import annotations

from typing import Any

from edgebert.encoders import roberta
from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders.roberta import HEAD_RENAMES, PREFIX, RENAMES, ClassificationHead

__all__ = ["CLASS_PREFIX", "HEAD_RENAMES", "PREFIX", "RENAMES", "ClassificationHead", "read_config", "write_config"]

CLASS_PREFIX = "XLMRoberta"


def read_config(settings: dict[str, Any], *, where: str) -> EncoderConfig:
    """Turns the settings of a checkpoint's `config.json` into an encoder's shape.

    Raises:
        ConfigError: As for RoBERTa.
    """
    return roberta.read_config(settings, where=where, family="xlm_roberta")


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Returns the settings `transformers` needs to open the same encoder as an `XLMRobertaModel`."""
    return roberta.write_config(config, model_type="xlm-roberta")
