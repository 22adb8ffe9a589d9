from collections.abc import Callable
from typing import Any

from edgebert.report import exits

Make = Callable[..., Any]


def test_right_and_wrong_apart_as_shares_of_all(evaluated: Make, static: Make, combine: Make, records: Make) -> None:
    (bars,) = records(exits.chart(combine([evaluated(), static()])))

    # 34 right and 6 wrong of 40; the static model, which runs all layers on every text, is left out.
    assert {bar["label"] for bar in bars} == {"fast (default)"}
    assert [(bar["answer"], bar["layers"], bar["texts"]) for bar in bars[:3]] == [
        ("right", 1, 10),
        ("right", 2, 14),
        ("right", 3, 10),
    ]
    assert sum(bar["share"] for bar in bars) == 1.0
    assert bars[3]["share"] == 1 / 40


def test_regression_has_one_kind_of_answer(evaluated: Make, combine: Make, records: Make) -> None:
    (bars,) = records(exits.chart(combine([evaluated(exit_histogram={"all": [1, 0, 3]})])))

    assert [(bar["answer"], bar["texts"]) for bar in bars] == [("all", 1), ("all", 0), ("all", 3)]


def test_only_static_models(static: Make, combine: Make) -> None:
    assert exits.chart(combine([static()])) is None
