"""What tasks share in which a text is one row and its label stands in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example
from edgebert.text import Encoded, Text, TextEncoder

CALL = 'model("a text")'
ARGUMENTS = '"a text"'
PIPELINE_TAG = "text-classification"
AUTO_MODEL = "AutoModelForSequenceClassification"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to set."""


def read_line(line: str, *, where: str) -> Text:
    """Returns the line: it is the text."""
    return line


def groups(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Returns a number of its own for each example, int64 [examples]: any may be held out."""
    return np.arange(len(examples))


def encode(
    texts: Sequence[Text], text: TextEncoder, settings: Config, *, max_length: int | None = None, first: int = 0
) -> Sequence[Encoded]:
    """Returns one row for each text, cut where it is too long; see `TextEncoder.encode`."""
    return text.encode(texts, max_length=max_length, first=first)


def row_targets(examples: Sequence[Example], rows: Sequence[Encoded], targets: NDArray[Any]) -> NDArray[Any]:
    """Returns the targets: a row is a text."""
    return targets
