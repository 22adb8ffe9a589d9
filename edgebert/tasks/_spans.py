"""Spans of a passage: where an answer stands in a window, and the best spans over all windows of a question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.tasks import Candidate
from edgebert.text import Window


def target_of(window: Window, start: int, end: int) -> tuple[int, int]:
    """Returns the first and the last token of an answer; 0 and 0, the first token of all, where it is not in there.

    Args:
        window: A window.
        start: The answer's first character in the passage.
        end: The character after its last.
    """
    first, last = window.offsets[:, 0], window.offsets[:, 1]
    tokens = np.flatnonzero((last > start) & (first < end) & (first >= 0))
    if not len(tokens) or first[tokens[0]] > start or last[tokens[-1]] < end:
        return 0, 0
    return int(tokens[0]), int(tokens[-1])


def best_spans(scores: Sequence[NDArray[Any]], windows: Sequence[Window], top_k: int) -> list[Candidate]:
    """Returns the best answers of one question, the best first; no two have the same text.

    A span may begin and end with any token of the passage, end no earlier than it begins, and be no longer than the
    window allows. Its score is the sum of its two logits; its probability is the softmax over all spans of all windows,
    where spans between the same characters of the passage are one, in whatever window, and by whatever tokens.

    Args:
        scores: For each window, the logits of beginning and of ending with each token, float [tokens or more, 2].
        windows: The windows of the question.
        top_k: How many answers, 1 or more.

    Returns:
        At most `top_k` answers, without white space around them. A passage without any token gives one empty answer
        of probability 0.
    """
    sums = [_sums(np.asarray(logits, np.float64), window) for logits, window in zip(scores, windows, strict=True)]
    flat = np.concatenate([part.ravel() for part in sums])
    ends = np.cumsum([part.size for part in sums])
    found: dict[str, Candidate] = {}
    if np.isfinite(flat.max()):
        log_total = flat.max() + np.log(np.exp(flat - flat.max()).sum())
        for place in _best_first(flat):
            if len(found) == top_k or not np.isfinite(flat[place]):
                break
            number = int(np.searchsorted(ends, place, side="right"))
            inside = place - int(ends[number]) + sums[number].size
            token, more = divmod(inside, sums[number].shape[1])
            own = windows[number]
            ends_at = own.offsets[token, 0], own.offsets[token + more, 1]
            alike = [at for at, window in enumerate(windows) if window.passage == own.passage]
            shares = [np.exp(_between(sums[at], windows[at], *ends_at) - log_total).sum() for at in alike]
            candidate = _cut_out(own, token, token + more, float(sum(shares)))
            if candidate.text:
                found.setdefault(candidate.text, candidate)
    best = sorted(found.values(), key=lambda candidate: -candidate.score)
    return best or [Candidate("", 0.0)]


def _between(sums: NDArray[np.float64], window: Window, start: int, end: int) -> NDArray[np.float64]:
    """Returns the scores a window gives spans between two characters; several where tokens are parts of one."""
    first = np.flatnonzero(window.offsets[:, 0] == start)[:, None]
    more = np.flatnonzero(window.offsets[:, 1] == end) - first
    is_span = (more >= 0) & (more < sums.shape[1])
    scores: NDArray[np.float64] = sums[np.broadcast_to(first, more.shape)[is_span], more[is_span]]
    return scores


def _sums(logits: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """Returns the score of the span of each first token and each number of further ones, [tokens, longest]."""
    is_passage = window.offsets[:, 0] >= 0
    start, end = np.where(is_passage[:, None], logits[: len(is_passage)], -np.inf).T
    longest = min(window.max_answer_tokens, len(is_passage))
    none = np.full(longest - 1, -np.inf)
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate([end, none]), longest)
    sums: NDArray[np.float64] = start[:, None] + ends
    return sums


def _best_first(values: NDArray[np.float64]) -> Iterator[int]:
    """Yields the places of values from the highest to the lowest, sorting them only when asked for a second one."""
    yield int(values.argmax())
    yield from np.argsort(-values, kind="stable")[1:].tolist()


def _cut_out(window: Window, first: int, last: int, probability: float) -> Candidate:
    start, end = int(window.offsets[first, 0]), int(window.offsets[last, 1])
    words = window.passage[start:end]
    start += len(words) - len(words.lstrip())
    words = words.strip()
    return Candidate(words, probability, start, start + len(words))
