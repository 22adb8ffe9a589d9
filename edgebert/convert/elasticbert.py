"""elasticbert: checkpoints of ElasticBERT's code for dynamic use.

Liu et al., 2022 (https://aclanthology.org/2022.naacl-main.240/). BERT under the prefix `elasticbert.`, with a pooler
of its own after every layer (`encoder.pooler.{layer}.dense`), which reads the first token, and a linear
`classifiers.{layer}` on it. The published rule is an entropy in nats, or patience.

These are the exits of two methods here: `deebert`, whose rule is that entropy, and `pabee` with poolers of its own,
whose rule is patience. A classifier becomes `deebert`; regression has no entropy and becomes `pabee`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from edgebert.convert._translation import BUFFERS, Renames, Translation, encoder_renames, family_of, last_layer

_PREFIX = "elasticbert."
_POOLER = f"{_PREFIX}encoder.pooler."
_LABELS = "classifiers.0.weight"


def recognises(names: Collection[str]) -> bool:
    """Says whether tensor names are of this kind."""
    return any(name.startswith(_PREFIX) for name in names)


def translate(settings: dict[str, Any], weights: dict[str, Tensor], *, where: str) -> Translation:
    """Returns how a checkpoint becomes ours.

    Args:
        settings: Its `config.json`.
        weights: Its tensors by name.
        where: What messages call the settings.

    Raises:
        ConfigError: The settings do not say how many layers there are.
    """
    settings = {**settings, "model_type": "bert"}
    last = last_layer(settings, where=where)
    is_regression = _LABELS in weights and len(weights[_LABELS]) == 1
    method: dict[str, Any]
    exits: Renames
    if is_regression:
        method = {"name": "pabee", "pool": "cls", "shared_pooler": False}
        reason = "a pooler and a classifier after every layer, and one value, whose published rule is patience"
        exits = (
            (_POOLER + "{layer}.dense.", "poolers.{layer}.dense."),
            ("classifiers.{layer}.", "classifiers.{layer}.label."),
        )
    else:
        method = {"name": "deebert", "pool": "cls"}
        reason = "a pooler and a classifier after every layer, whose published rule is the entropy in nats"
        exits = (
            (f"{_POOLER}{last}.dense.", "final.pooler.dense."),
            (f"classifiers.{last}.", "final.classifier.label."),
            (_POOLER + "{layer}.dense.", "exits.{layer}.pooler.dense."),
            ("classifiers.{layer}.", "exits.{layer}.classifier.label."),
        )
    return Translation(
        encoder=settings,
        method=method,
        reason=reason,
        renames=(*encoder_renames(family_of(settings), _PREFIX), *exits),
        ignored=BUFFERS,
        label_tensor=_LABELS,
    )
