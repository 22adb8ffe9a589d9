from collections.abc import Callable
from typing import Any

from edgebert.report import widths

Make = Callable[..., Any]


def test_heads_and_blocks_apart(evaluated: Make, combine: Make, records: Make) -> None:
    rates = {"head": [[1.0, 0.5], [0.25, 0.75]], "block": [[0.0], [1.0]]}

    (cells,) = records(widths.chart(combine([evaluated(maps={"keep_rates": rates})])))

    assert [(cell["panel"], cell["layer"], cell["rate"]) for cell in cells] == [
        ("fast (default): heads", 1, [1.0, 0.5]),
        ("fast (default): heads", 2, [0.25, 0.75]),
        ("fast (default): blocks", 1, [0.0]),
        ("fast (default): blocks", 2, [1.0]),
    ]


def test_no_pieces(evaluated: Make, combine: Make) -> None:
    assert widths.chart(combine([evaluated(maps={"paths": ["111"]})])) is None
