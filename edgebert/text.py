"""Texts to token ids, and token ids to batches of like length."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgebert.errors import BundleError, DataError

Values = dict[str, NDArray[Any]]
"""Arrays by name, rows on axis 0."""

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


@dataclass(frozen=True)
class Encoded:
    """One text as token ids; `truncated` says whether its end was cut off."""

    ids: list[int]
    type_ids: list[int]
    truncated: bool


class TextEncoder:
    """A tokenizer with the model's limits."""

    def __init__(self, tokenizer_json: bytes, *, max_length: int, pad_token_id: int) -> None:
        """Reads a `tokenizer.json`.

        Raises:
            BundleError: It is not one.
        """
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:
            raise BundleError(f"tokenizer.json: cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._lock = threading.Lock()  # a tokenizer's truncation is a setting of its own, and not to be changed in use
        self.max_length = max_length
        self.pad_token_id = pad_token_id

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that stand for no part of a text: those that are put around texts and pairs, and padding."""
        empty = (self._tokenizer.encode(""), self._tokenizer.encode("", ""))
        return frozenset({self.pad_token_id, *(number for encoding in empty for number in encoding.ids)})

    def has_tokens_of(self, other: TextEncoder) -> bool:
        """Says whether both give every token the same id."""
        same: bool = self._tokenizer.get_vocab() == other._tokenizer.get_vocab()
        return same

    def encode(self, texts: Sequence[Text], *, max_length: int | None = None, first: int = 0) -> list[Encoded]:
        """Returns the token ids of texts or pairs.

        Args:
            texts: Texts or pairs.
            max_length: Cut them to this many tokens; None, or more than the model's own limit, is that limit.
            first: The number of the first text, for messages.

        Raises:
            DataError: A text is not a text, named by its number from 0, or there is one str instead of a list.
        """
        if isinstance(texts, str):
            raise DataError("expected a list of texts, got one str; write [text].")
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if limit <= special:
            raise DataError(f"max_length: expected more than {special}, got {limit}.")
        cleaned = [_clean(text, number) for number, text in enumerate(texts, first)]
        with self._lock:
            self._tokenizer.enable_truncation(limit)
            encodings = self._tokenizer.encode_batch(cleaned)
        return [Encoded(encoding.ids, encoding.type_ids, bool(encoding.overflowing)) for encoding in encodings]

    def pad(self, rows: Sequence[Encoded]) -> Values:
        """Returns a batch: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens]."""
        tokens = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), tokens), self.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            types[number, : len(row.ids)] = row.type_ids
            mask[number, : len(row.ids)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def batches(
    lengths: Sequence[int],
    *,
    max_rows: int,
    max_tokens: int,
    sort: bool = True,
    depths: NDArray[np.int64] | None = None,
    cut_depths: bool = False,
) -> Iterator[NDArray[np.int64]]:
    """Yields the places of rows that go together: like lengths, few enough rows, and a bounded padded size.

    Args:
        lengths: Tokens of each row.
        max_rows: Most rows in a batch.
        max_tokens: Most tokens in a batch, padding included; a single longer row is a batch of its own.
        sort: Sort by depth, where it is known, then by length (stable). False keeps the order.
        depths: How many layers each row will run, int64 [rows].
        cut_depths: Only rows of one depth share a batch.
    """
    keys = np.zeros(len(lengths), np.int64) if depths is None else depths
    order = np.lexsort((np.asarray(lengths), keys)) if sort else np.arange(len(lengths))
    start = 0
    while start < len(order):
        stop, longest = start, 0
        while stop < len(order) and stop - start < max_rows:
            longest = max(longest, lengths[order[stop]])
            if stop > start and longest * (stop - start + 1) > max_tokens:
                break
            if cut_depths and keys[order[stop]] != keys[order[start]]:
                break
            stop += 1
        yield order[start:stop]
        start = stop


def _clean(text: object, number: int) -> Text:
    """Checks one text and replaces lone surrogates, which no tokenizer can read."""
    if isinstance(text, str):
        return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
    if isinstance(text, tuple | list) and len(text) == 2:
        first, second = (_clean(part, number) for part in text)
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise DataError(f"text {number}: expected a str or a pair of str, got {type(text).__name__}.")
