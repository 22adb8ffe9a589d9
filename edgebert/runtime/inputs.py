"""Checks token ids that a caller made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgebert.bundle.manifest import EncoderFacts
from edgebert.errors import DataError


def as_input(name: str, value: ArrayLike) -> NDArray[np.int64]:
    """Returns ids or a mask as the int64 [rows, tokens] that graphs read; one row may come without its axis.

    Args:
        name: What messages call it.
        value: Whole numbers or bools, an array or what numpy makes one of.

    Raises:
        DataError: It holds something else, rows of different lengths, or nothing.
    """
    try:
        given = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: expected whole numbers [rows, tokens], rows of one length; got {error}.") from error
    if not given.size or given.ndim not in (1, 2):
        raise DataError(f"{name}: expected whole numbers [rows, tokens], got an array of shape {given.shape}.")
    if given.dtype.kind not in "iub":
        raise DataError(f"{name}: expected whole numbers [rows, tokens], got {given.dtype}.")
    if given.dtype == np.uint64:  # the one type whose numbers an int64 may not hold
        given = np.minimum(given, np.uint64(np.iinfo(np.int64).max))  # what is larger than any id stays so
    return np.ascontiguousarray(np.atleast_2d(given), np.int64)


def check_ids(facts: EncoderFacts, ids: NDArray[Any], mask: NDArray[Any], types: NDArray[Any]) -> None:
    """Refuses token ids that an encoder does not take.

    Args:
        facts: The encoder's.
        ids: `input_ids`, int [rows, tokens].
        mask: `attention_mask`, int [rows, tokens].
        types: `token_type_ids`, int [rows, tokens].

    Raises:
        DataError: The shapes do not fit, an id is outside the vocabulary, or a mask has other values than 0 and 1 or a
            row that is all padding.
    """
    if ids.shape != mask.shape or ids.shape != types.shape or ids.ndim != 2 or not ids.size:
        raise DataError(
            "expected input_ids, attention_mask and token_type_ids of one shape [rows, tokens], got "
            f"{ids.shape}, {mask.shape} and {types.shape}."
        )
    if ids.shape[1] > facts.max_length:
        raise DataError(f"input_ids: expected at most {facts.max_length} tokens, got {ids.shape[1]}.")
    if ids.min() < 0 or ids.max() >= facts.vocabulary_size:
        raise DataError(f"input_ids: expected ids of 0 to {facts.vocabulary_size - 1}, got {ids.min()} to {ids.max()}.")
    if facts.token_types > 1 and (types.min() < 0 or types.max() >= facts.token_types):
        raise DataError(f"token_type_ids: expected 0 to {facts.token_types - 1}, got up to {types.max()}.")
    if mask.min() < 0 or mask.max() > 1:
        raise DataError(f"attention_mask: expected 0 and 1, got {mask.min()} to {mask.max()}.")
    if not mask.any(axis=1).all():
        raise DataError("attention_mask: a row is all padding.")
