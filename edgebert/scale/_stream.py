"""Streams texts without end through a model and watches its memory and its throughput."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
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
_LIST_TEXTS = 4 * WINDOW


def measure_stream(
    model: EdgeModel,
    texts: Sequence[Text],
    count: int,
    *,
    batch_size: int,
    max_length: int | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Streams texts over and over until so many are answered.

    Args:
        model: The model, as it is set.
        texts: The texts to cycle through.
        count: How many to answer.
        batch_size: Most texts in a batch.
        max_length: Cut texts to this many tokens.
        reporter: Where progress goes.

    Returns:
        `checkpoints`, each with the `texts` answered by then, the `private_mb` of the process, and since the
        checkpoint before `texts_per_s` in the stream, `list_texts_per_s` of its last texts (at most 4096) given as
        one list, and the `ratio` of these. `ratio` is the median one after the warm-up, the first tenth of the texts;
        `growth_percent` says how far private memory rose above what it was at the end of the warm-up at any later
        checkpoint, None where there is none.

    Raises:
        MissingExtraError: psutil is not installed.
    """
    require("psutil", extra="eval", purpose="edgebert scale --data")
    recent: deque[Text] = deque(maxlen=_LIST_TEXTS)

    def endless() -> Iterator[Text]:
        for text in itertools.islice(itertools.cycle(texts), count):
            recent.append(text)
            yield text

    answers = model.stream(endless(), batch_size=batch_size, max_length=max_length, window=WINDOW)
    ends = checkpoints_of(count)
    model.run_encoded(model.encode(texts[:batch_size], max_length=max_length), batch_size=batch_size)
    rows: list[dict[str, Any]] = []
    with reporter.track("stream", count) as advance:
        for start, end in zip([0, *ends], ends, strict=False):
            began = time.perf_counter()
            answered = sum(1 for _ in itertools.islice(answers, end - start))
            stream_s = time.perf_counter() - began
            memory_mb = private_mb()
            listed = list(recent)[-answered:]
            began = time.perf_counter()
            _answer_list(model, listed, batch_size, max_length)
            list_s = time.perf_counter() - began
            rates = answered / stream_s, len(listed) / list_s
            rows.append(
                {
                    "texts": start + answered,
                    "private_mb": memory_mb,
                    "texts_per_s": rates[0],
                    "list_texts_per_s": rates[1],
                    "ratio": rates[0] / rates[1],
                }
            )
            advance(answered, f"{rates[0]:.0f} texts/s, {memory_mb:.0f} MB")
    return {"texts": count, "batch": batch_size, "max_length": max_length, "checkpoints": rows, **_summary(rows)}


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
    settled = rows[first:]
    return {
        "warm_up_texts": rows[first]["texts"],
        "warm_up_mb": base,
        "peak_mb": max(row["private_mb"] for row in rows),
        "growth_percent": 100.0 * max(0.0, max(later) / base - 1.0) if later else None,
        "texts_per_s": float(np.median([row["texts_per_s"] for row in settled])),
        "list_texts_per_s": float(np.median([row["list_texts_per_s"] for row in settled])),
        "ratio": float(np.median([row["ratio"] for row in settled])),
    }
