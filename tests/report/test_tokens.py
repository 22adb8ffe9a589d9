from collections.abc import Callable
from typing import Any

from edgebert.report import tokens

Make = Callable[..., Any]


def test_tokens_are_set_in_lines_that_do_not_overlap(evaluated: Make, combine: Make, records: Make) -> None:
    sentence = [[("word" * 5, number % 4) for number in range(30)]]

    headings, words = records(tokens.chart(combine([evaluated(maps={"tokens": sentence})])))

    assert [heading["text"] for heading in headings] == ["fast (default): text 1"]
    assert [word["layers"] for word in words] == [number % 4 for number in range(30)]
    # 20 letters and a space: four words reach letter 83 of 100, a fifth would not fit.
    assert [(word["line"], word["column"]) for word in words[:5]] == [(1, 0), (1, 21), (1, 42), (1, 63), (2, 0)]


def test_long_texts_are_cut_and_say_so(evaluated: Make, combine: Make, records: Make) -> None:
    headings, words = records(tokens.chart(combine([evaluated(maps={"tokens": [[("a", 1)] * 400]})])))

    assert headings[0]["text"] == "fast (default): text 1, the first 150 of 400 tokens"
    assert len(words) == 150


def test_tokens_not_dropped(evaluated: Make, combine: Make) -> None:
    assert tokens.chart(combine([evaluated()])) is None
