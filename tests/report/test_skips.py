from collections.abc import Callable
from typing import Any

from edgebert.report import skips

Make = Callable[..., Any]


def test_texts_with_the_fewest_layers_come_first(evaluated: Make, combine: Make, records: Make) -> None:
    rows = [evaluated(maps={"paths": ["111", "100", "101"]}), evaluated("same", maps={"paths": ["111", "111"]})]

    (cells,) = records(skips.chart(combine(rows)))

    assert [(cell["place"], cell["text"], cell["path"]) for cell in cells] == [
        (1, 1, "100"),
        (2, 2, "101"),
        (3, 0, "111"),
    ]


def test_paths_not_told(evaluated: Make, combine: Make) -> None:
    assert skips.chart(combine([evaluated()])) is None
