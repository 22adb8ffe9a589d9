"""Streams texts without end through a model and watches its memory and its throughput."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgebert.errors import require
from edgebert.output import Reporter
from edgebert.rivals._memory import private_mb
from edgebert.runtime.model import EdgeModel
from edgebert.text import Text

WINDOW = 1024
"""How many texts a stream reads ahead and sorts by length: what `EdgeModel.stream` does by itself."""

CHECKPOINTS = 20
WARM_UP_SHARE = 0.1
_COMPARED_TEXTS = 4 * WINDOW
_COMPARISONS = 5


def measure_stream(
    model: EdgeModel,
    texts: Sequence[Text],
    count: int,
    *,
    batch_size: int,
    max_length: int | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Streams texts over and over until so many are answered, then compares streams with lists.

    The comparison comes last, since the lists that it makes would be in the stream's memory.

    Args:
        model: The model, as it is set.
        texts: The texts to cycle through.
        count: How many to answer.
        batch_size: Most texts in a batch.
        max_length: Cut texts to this many tokens.
        reporter: Where progress goes.

    Returns:
        `checkpoints`, each with the `texts` answered by then, the `private_mb` of the process, and `texts_per_s` since
        the checkpoint before; `growth_percent` says how far private memory rose, at any later checkpoint, above what it
        was after the warm-up, the first tenth of the texts, None where there is none. `comparisons`, each with the
        `texts_per_s` of at most 4096 texts streamed, the `list_texts_per_s` of the same as one list, and the `ratio` of
        these; `ratio` is the median one.

    Raises:
        MissingExtraError: Private memory cannot be told here without psutil.
    """
    if private_mb() is None:
        require("psutil", extra="eval", purpose="edgebert scale --data")
    ends = checkpoints_of(count)
    model.run_encoded(model.encode(texts[:batch_size], max_length=max_length), batch_size=batch_size)
    endless = itertools.islice(itertools.cycle(texts), count)
    answers = model.stream(endless, batch_size=batch_size, max_length=max_length, window=WINDOW)
    rows: list[dict[str, Any]] = []
    with reporter.track("stream", count) as advance:
        for start, end in zip([0, *ends], ends, strict=False):
            began = time.perf_counter()
            answered = sum(1 for _ in itertools.islice(answers, end - start))
            rate, memory_mb = answered / (time.perf_counter() - began), private_mb()
            rows.append({"texts": start + answered, "private_mb": memory_mb, "texts_per_s": rate})
            advance(answered, f"{rate:.0f} texts/s, {memory_mb:.0f} MB")
    some = list(itertools.islice(itertools.cycle(texts), min(count, _COMPARED_TEXTS)))
    comparisons = [_compare(model, some, batch_size, max_length, number) for number in range(_COMPARISONS)]
    return {
        "texts": count,
        "batch": batch_size,
        "max_length": max_length,
        "checkpoints": rows,
        **_summary(rows),
        "comparisons": comparisons,
        "ratio": float(np.median([row["ratio"] for row in comparisons])),
    }


def _compare(
    model: EdgeModel, texts: Sequence[Text], batch_size: int, max_length: int | None, number: int
) -> dict[str, float]:
    """Times the same texts as a stream and as a list, every other time the list first."""

    def stream() -> None:
        for _ in model.stream(iter(texts), batch_size=batch_size, max_length=max_length, window=WINDOW):
            pass

    def answer_list() -> None:
        _answer_list(model, texts, batch_size, max_length)

    rates = {}
    for run in (stream, answer_list) if number % 2 == 0 else (answer_list, stream):
        began = time.perf_counter()
        run()
        rates[run] = len(texts) / (time.perf_counter() - began)
    return {
        "texts_per_s": rates[stream],
        "list_texts_per_s": rates[answer_list],
        "ratio": rates[stream] / rates[answer_list],
    }


def checkpoints_of(count: int) -> list[int]:
    """Returns after how many texts to look, about 20 times: at whole windows, and at the end.

    >>> checkpoints_of(3000)
    [1024, 2048, 3000]
    """
    step = max(1, count // CHECKPOINTS // WINDOW) * WINDOW
    return [*range(step, count, step), count]


def _answer_list(model: EdgeModel, texts: Sequence[Text], batch_size: int, max_length: int | None) -> None:
    if model.task.ASKED == "questions":
        questions, contexts = zip(*texts, strict=True)
        model.answer(questions, contexts, batch_size=batch_size, max_length=max_length)
    else:
        model(texts, batch_size=batch_size, max_length=max_length)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = next(place for place, row in enumerate(rows) if row["texts"] >= WARM_UP_SHARE * rows[-1]["texts"])
    base, later = rows[first]["private_mb"], [row["private_mb"] for row in rows[first + 1 :]]
    return {
        "warm_up_texts": rows[first]["texts"],
        "warm_up_mb": base,
        "peak_mb": max(row["private_mb"] for row in rows),
        "growth_percent": 100.0 * max(0.0, max(later) / base - 1.0) if later else None,
        "texts_per_s": float(np.median([row["texts_per_s"] for row in rows[first:]])),
    }
