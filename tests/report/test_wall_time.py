from collections.abc import Callable
from typing import Any

from edgebert.report import wall_time

Make = Callable[..., Any]


def test_only_rows_timed_one_by_one(evaluated: Make, static: Make, combine: Make, records: Make) -> None:
    rows = [evaluated(p50_ms=3.0), static(p50_ms=7.0), evaluated("untimed")]

    hull, _, points = records(wall_time.chart(combine(rows)))

    assert [(point["label"], point["cost"]) for point in points] == [("fast (default)", 3.0), ("plain (default)", 7.0)]
    assert [point["cost"] for point in hull] == [7.0]


def test_nothing_timed(evaluated: Make, combine: Make) -> None:
    assert wall_time.chart(combine([evaluated()])) is None


def test_other_threads_and_processors_are_charts_of_their_own(evaluated: Make, static: Make, combine: Make) -> None:
    rows = [
        static(p50_ms=7.0, threads=1),
        evaluated(p50_ms=3.0, threads=1),
        static(p50_ms=4.0, threads=2),
        evaluated(p50_ms=2.0, threads=1, processor="another"),
    ]

    charts = wall_time.chart(combine(rows)).to_dict()["vconcat"]

    assert [chart["title"].split(", ", 1)[1] for chart in charts] == ["1 thread, ", "2 threads, ", "1 thread, another"]
