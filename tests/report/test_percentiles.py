from collections.abc import Callable
from typing import Any

from edgebert.report import percentiles

Make = Callable[..., Any]


def test_curve_ends_at_the_99th_percentile_and_has_three_marks(
    evaluated: Make, timed: Make, combine: Make, records: Make
) -> None:
    curve = [float(percent) for percent in range(101)]
    rows = [evaluated(p50_ms=50.0, latency_quantiles_ms=curve)]

    lines, marks = records(percentiles.chart(combine(rows, [timed(latency_quantiles_ms=curve)])))

    assert [line["label"] for line in lines] == ["fast (default)", "fast (entropy)"]
    assert lines[0]["ms"] == curve[:100]
    assert [(mark["percent"], mark["ms"]) for mark in marks[:3]] == [(50, 50.0), (90, 90.0), (99, 99.0)]


def test_calls_not_timed_alone(evaluated: Make, timed: Make, combine: Make) -> None:
    assert percentiles.chart(combine([evaluated()], [timed(latency_quantiles_ms=None)])) is None
