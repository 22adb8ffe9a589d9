from collections.abc import Callable
from typing import Any

from edgebert.report import steps

Make = Callable[..., Any]


def test_python_comes_last_and_shares_are_of_the_whole(timed: Make, combine: Make, records: Make) -> None:
    rows = [
        timed(steps_ms={"embed": 1.0, "layer": 6.0, "python": 1.0}),
        timed("other", label="other (never)", steps_ms={"embed": 1.0, "gate": 2.0, "python": 1.0}),
    ]

    chart = steps.chart(combine(timed=rows))

    (bars,) = records(chart)
    assert [(bar["step"], bar["share"]) for bar in bars[:3]] == [("embed", 0.125), ("layer", 0.75), ("python", 0.125)]
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == ["embed", "layer", "gate", "python"]


def test_steps_not_timed(timed: Make, combine: Make) -> None:
    assert steps.chart(combine(timed=[timed()])) is None
