"""Texts to token ids, token ids to batches of like length, and what batches gave back to rows."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from edgebert.arguments import check_count, items_of
from edgebert.errors import BundleError, DataError
from edgebert.printable import shown

Values = dict[str, NDArray[Any]]
"""Arrays by name, rows on axis 0."""

Text = str | tuple[str, str]
"""A text, or a pair of texts."""

LARGEST_TEXT = 2**22
"""Characters of one text: several novels. A tokenizer needs up to 600 bytes and 5 microseconds for each."""

_CHARACTERS_A_TOKEN = 16
"""Texts of fewer for each token that is kept are tokenized as a whole, which is faster; English has 4 to 5."""

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoded:
    """A row: one text as token ids, or a part of one.

    Attributes:
        ids: Token ids.
        type_ids: Segment ids.
        truncated: Whether the end of the text was cut off.
        text: Which of the texts encoded together it is of, counted from 0.
    """

    ids: list[int]
    type_ids: list[int]
    truncated: bool
    text: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Window(Encoded):
    """A question with a part of its passage; `truncated` says whether the end of the question was cut off.

    Attributes:
        passage: The whole passage.
        offsets: For each token of the passage, its first character there and the one after its last; -1 for all other
            tokens; int64 [tokens, 2].
        max_answer_tokens: The longest answer to look for.
    """

    passage: str
    offsets: NDArray[np.int64]
    max_answer_tokens: int


def is_pair(texts: object) -> bool:
    """Says whether what was given is one pair of texts, a tuple of two strings, rather than a list of texts."""
    return isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], str)


def texts_in(texts: Iterable[Text]) -> Iterator[Text]:
    """Returns an iterator over several texts or pairs.

    Raises:
        DataError: It is one text or one pair, which would pass for two texts, or no collection of an order of its own.
    """
    if is_pair(texts):
        raise DataError("texts: expected a list, got one pair; write [(a, b)] for the pair, or [a, b] for two texts.")
    return items_of("texts", texts)


class TextEncoder:
    """A tokenizer with the model's limits."""

    def __init__(self, tokenizer_json: bytes, *, max_length: int, pad_token_id: int) -> None:
        """Reads a `tokenizer.json`.

        Raises:
            BundleError: It is not one, or cannot encode a pair of words.
        """
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
            self._tokenizer.no_padding()
            self._tokenizer.encode_batch([("a", "b"), "a"])  # what it puts around texts must be among its tokens
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic inside the library is no Exception
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"tokenizer.json: cannot be read ({reason}); export the bundle again.") from error
        self._lock = threading.Lock()  # a tokenizer's truncation is a setting of its own, and not to be changed in use
        self.max_length = max_length
        self.pad_token_id = pad_token_id

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that stand for no part of a text: those that are put around texts and pairs, and padding."""
        empty = (self._tokenizer.encode(""), self._tokenizer.encode("", ""))
        return frozenset({self.pad_token_id, *(number for encoding in empty for number in encoding.ids)})

    @property
    def largest_id(self) -> int:
        """The largest id that it gives: a vocabulary need not have a token for every number below."""
        largest: int = max({*self._tokenizer.get_vocab().values(), *self.special_ids})
        return largest

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Returns the vocabulary's own spelling of token ids; an empty text for an id it does not have."""
        return [self._tokenizer.id_to_token(number) or "" for number in ids]

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
            ConfigError: `max_length` is no whole number.
            DataError: A text is not a text or is too large, named by its number from 0, or there is no list of them;
                `max_length` has no room for a token.
        """
        limit, room = self._room(max_length, at_least=1)
        cleaned = [_clean(text, number) for number, text in enumerate(texts_in(texts), first)]
        with self._lock:
            self._tokenizer.no_truncation()
            enough = [
                self._beginning(text, limit) if isinstance(text, str) else self._beginnings(text, limit, room)
                for text in cleaned
            ]
            self._tokenizer.enable_truncation(limit)
            encodings = self._encode_all(enough)
        return [
            Encoded(encoding.ids, encoding.type_ids, bool(encoding.overflowing), number)
            for number, encoding in enumerate(encodings)
        ]

    def encode_windows(
        self,
        questions: Sequence[tuple[str, str]],
        *,
        overlap_tokens: int,
        max_question_tokens: int,
        max_answer_tokens: int,
        max_length: int | None = None,
        first: int = 0,
    ) -> list[Window]:
        """Returns questions, each with its whole passage, which takes as many windows as it needs.

        Args:
            questions: Pairs of a question and its passage.
            overlap_tokens: How many tokens of the passage neighbouring windows share; where windows are small, half
                of one at most.
            max_question_tokens: Cut questions to this many tokens; where windows are small, to half of one at most.
            max_answer_tokens: The longest answer to look for.
            max_length: Tokens of a window; None, or more than the model's own limit, is that limit.
            first: The number of the first question, for messages.

        Raises:
            ConfigError: `max_length` is no whole number.
            DataError: A question or passage is not a text or is too large, or a window has no room for one token of
                each.
        """
        limit, room = self._room(max_length, at_least=2)
        max_question_tokens = min(max_question_tokens, room // 2)
        overlap_tokens = min(overlap_tokens, (room - max_question_tokens) // 2)
        cleaned = [_clean_pair(pair, number) for number, pair in enumerate(texts_in(questions), first)]
        with self._lock:
            self._tokenizer.no_truncation()
            asked = [self._cut(question, max_question_tokens) for question, _ in cleaned]
            self._tokenizer.enable_truncation(limit, stride=overlap_tokens, strategy="only_second")
            encodings = self._encode_all(
                [(question, passage) for question, (_, passage) in zip(asked, cleaned, strict=True)]
            )
        return [
            Window(
                window.ids,
                window.type_ids,
                len(asked[number]) < len(cleaned[number][0]),
                number,
                passage=cleaned[number][1],
                offsets=_passage_offsets(window),
                max_answer_tokens=max_answer_tokens,
            )
            for number, encoding in enumerate(encodings)
            for window in (encoding, *encoding.overflowing)
        ]

    def _encode_all(self, texts: Sequence[Text]) -> list[Encoding]:
        """Returns what the tokenizer, as it is set now, makes of texts; of one, without waking its pool of threads."""
        if len(texts) != 1:
            encodings: list[Encoding] = self._tokenizer.encode_batch(texts)
            return encodings
        (text,) = texts
        return [self._tokenizer.encode(text) if isinstance(text, str) else self._tokenizer.encode(*text)]

    def _room(self, max_length: int | None, *, at_least: int) -> tuple[int, int]:
        """Returns the longest row in tokens, and how many of them a pair of texts may take.

        Raises:
            DataError: They are fewer than they must be.
        """
        limit = self.max_length
        if max_length is not None:
            limit = min(check_count("max_length", max_length, least=-(2**63)), limit)
        special: int = self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if limit < special + at_least:
            raise DataError(f"max_length: expected more than {special + at_least - 1}, got {limit}.")
        return limit, limit - special

    def _beginning(self, text: str, tokens: int) -> str:
        """Returns as much of a long text as has the same first tokens as all of it, in a fraction of the time.

        A word is the tokenizer's own: what it cuts a text into before it looks for tokens. Where a text ends changes
        its last word alone, so a beginning with enough tokens before its last word will do.
        """
        characters = _CHARACTERS_A_TOKEN * tokens
        while characters < len(text):
            encoding = self._encode(text[:characters])
            if _before_last_word(encoding) >= tokens:
                shorter = text[: encoding.offsets[min(2 * tokens, len(encoding) - 1)][1]]
                return shorter if _before_last_word(self._encode(shorter)) >= tokens else text[:characters]
            characters *= 8
        return text

    def _beginnings(self, pair: tuple[str, str], tokens: int, room: int) -> tuple[str, str]:
        """Returns as much of a pair as is cut to the same tokens as all of it.

        Of all of it the tokenizer would make every piece that it cuts off one part beside every piece of the other.
        Where both parts are too long each gets half of the room, and what is left of an odd number goes to the
        one that has more tokens in all, of equals to the second: that one must stay the longer.
        """
        if max(map(len, pair)) <= _CHARACTERS_A_TOKEN * tokens:
            return pair
        first, second = (self._beginning(part, tokens) for part in pair)
        firsts, seconds = len(self._encode(first)), len(self._encode(second))
        if room % 2 == 0 or min(firsts, seconds) < tokens:  # the one with fewer is whole, and is not the longer one
            return first, second
        if self._has_more(*pair):
            first = self._beginning(pair[0], seconds + 1)
            return pair if first == pair[0] else (first, second)
        second = self._beginning(pair[1], firsts + 1)
        return pair if second == pair[1] else (first, second)

    def _has_more(self, text: str, other: str) -> bool:
        """Says whether a text has more tokens than another; the longer one is looked at no farther than needed."""
        if len(text) > len(other):
            return self._has(text, len(self._encode(other)) + 1)
        return not self._has(other, len(self._encode(text)))

    def _has(self, text: str, tokens: int) -> bool:
        """Says whether a text has so many tokens."""
        return self._beginning(text, tokens) != text or len(self._encode(text)) >= tokens

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _cut(self, question: str, tokens: int) -> str:
        """Returns the longest beginning found of a question that is no more than so many tokens."""
        question = self._beginning(question, tokens + 1)
        while len(encoding := self._encode(question)) > tokens:
            # Its last word may fall into other tokens once it is cut, hence the loop; each turn takes a character.
            question = question[: min(encoding.offsets[tokens - 1][1], len(question) - 1)]
        return question

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


def join_rows(parts: Sequence[tuple[NDArray[np.int64], NDArray[Any]]], rows: int) -> NDArray[Any]:
    """Returns as one array what batches gave, in the order of the rows.

    Where batches differ in a size behind the rows, such as that of tokens, shorter rows end in zeros.

    Args:
        parts: The places of a batch's rows, int64 [batch], and what it gave, [batch, ...]; at least one.
        rows: How many rows there are.
    """
    shape = np.max([part.shape[1:] for _, part in parts], axis=0).astype(int)
    joined = np.zeros((rows, *shape), np.result_type(*{part.dtype for _, part in parts}))
    for places, part in parts:
        inside = (places, *(slice(size) for size in part.shape[1:]))
        joined[inside] = part
    return joined


def _before_last_word(encoding: Encoding) -> int:
    """Returns how many tokens stand before the last word."""
    words = encoding.word_ids
    return len(words) - words.count(words[-1]) if words else 0


def _passage_offsets(window: Encoding) -> NDArray[np.int64]:
    is_passage = np.array([sequence == 1 for sequence in window.sequence_ids], np.bool_)
    offsets: NDArray[np.int64] = np.where(is_passage[:, None], np.array(window.offsets, np.int64), -1)
    return offsets


def _clean_pair(pair: object, number: int) -> tuple[str, str]:
    cleaned = _clean(pair, number) if _is_pair(pair) else None
    if not isinstance(cleaned, tuple):
        raise DataError(f"text {number}: expected a question and its passage, got {shown(pair)}.")
    return cleaned


def _clean(text: object, number: int) -> Text:
    """Checks one text or pair, and makes it one that a tokenizer can read."""
    if isinstance(text, str):
        return _clean_text(text, number)
    parts: list[object] = list(text) if _is_pair(text) else []  # type: ignore[call-overload]  # it has two
    texts = [_clean_text(part, number) for part in parts if isinstance(part, str)]
    if len(texts) == 2:
        return texts[0], texts[1]
    text = next((part for part in parts if not isinstance(part, str)), text)
    raise DataError(f"text {number}: expected a str or a pair of str, got {shown(text)}.")


def _is_pair(value: object) -> bool:
    """Says whether a value is two of something: as a tuple, a list, or the row of an array."""
    return (isinstance(value, tuple | list) and len(value) == 2) or getattr(value, "shape", None) == (2,)


def readable(text: str) -> str:
    """Returns a text with U+FFFD for each lone surrogate, which stands for a byte or unit that could not be read."""
    return str(text) if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _clean_text(text: str, number: int) -> str:
    if len(text) > LARGEST_TEXT:
        raise DataError(
            f"text {number}: expected at most {LARGEST_TEXT} characters, got {len(text)}; cut it into several."
        )
    return readable(text)
