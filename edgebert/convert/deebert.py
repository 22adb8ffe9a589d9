"""deebert: checkpoints of DeeBERT's code and of its Hugging Face research example.

Xin et al., 2020 (https://arxiv.org/abs/2004.12993). The encoder of `transformers` (BERT or RoBERTa) with
`encoder.highway.{layer}.pooler.dense` and `.classifier` after every layer, the model's own pooler, and `classifier`.
An exit reads the first token. The last highway is never trained: our last exit is the model's own classifier.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import Tensor

from edgebert.convert._translation import BUFFERS, Translation, encoder_renames, family_of, last_layer, pooler_name


def recognises(names: Collection[str]) -> bool:
    """Says whether tensor names are of this kind."""
    return any(re.match(r"\w+\.encoder\.highway\.\d+\.", name) for name in names)


def translate(settings: dict[str, Any], weights: dict[str, Tensor], *, where: str) -> Translation:
    """Returns how a checkpoint becomes ours.

    Args:
        settings: Its `config.json`.
        weights: Its tensors by name.
        where: What messages call the settings.

    Raises:
        ConfigError: The encoder is of an unknown family, or the settings do not say how many layers it has.
    """
    family = family_of(settings)
    last = last_layer(settings, where=where)
    highway = f"{family.PREFIX}encoder.highway."
    return Translation(
        encoder=settings,
        method={"name": "deebert", "pool": "cls"},
        reason="the same method",
        renames=(
            *encoder_renames(family, family.PREFIX),
            (highway + "{layer}.pooler.dense.", "exits.{layer}.pooler.dense."),
            (highway + "{layer}.classifier.", "exits.{layer}.classifier.label."),
            (pooler_name(family), "final.pooler.dense."),
            ("classifier.", "final.classifier.label."),
        ),
        ignored=(*BUFFERS, (re.escape(f"{highway}{last}.") + ".+", "the highway of the last layer, never trained")),
        label_tensor="classifier.weight",
    )
