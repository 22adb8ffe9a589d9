"""pabee: checkpoints of PABEE's Hugging Face research example ("BERT Loses Patience").

Zhou et al., 2020 (https://arxiv.org/abs/2006.04152). The encoder of `transformers` (BERT or ALBERT) with its one
pooler, which reads the first token, and a linear `classifiers.{layer}` after every layer. One label is regression.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import Tensor

from edgebert.convert._translation import BUFFERS, Translation, encoder_renames, family_of, pooler_name


def recognises(names: Collection[str]) -> bool:
    """Says whether tensor names are of this kind."""
    has_classifiers = any(re.fullmatch(r"classifiers\.\d+\.weight", name) for name in names)
    return has_classifiers and any(re.match(r"\w+\.pooler\.", name) for name in names)


def translate(settings: dict[str, Any], weights: dict[str, Tensor], *, where: str) -> Translation:
    """Returns how a checkpoint becomes ours.

    Args:
        settings: Its `config.json`.
        weights: Its tensors by name.
        where: What messages call the settings.

    Raises:
        ConfigError: The encoder is of an unknown family.
    """
    family = family_of(settings)
    return Translation(
        encoder=settings,
        method={"name": "pabee", "pool": "cls", "shared_pooler": True},
        reason="the same method",
        renames=(
            *encoder_renames(family, family.PREFIX),
            (pooler_name(family), "poolers.0.dense."),
            ("classifiers.{layer}.", "classifiers.{layer}.label."),
        ),
        ignored=BUFFERS,
        label_tensor="classifiers.0.weight",
    )
