from collections.abc import Callable
from typing import Any

import pytest

from edgebert.report import pareto

Make = Callable[..., Any]


def test_cost_is_a_share_of_the_largest_model(evaluated: Make, static: Make, combine: Make, records: Make) -> None:
    # The small static model runs at its own full depth, which is a third of the large one's.
    rows = [evaluated(gmacs=0.6, flops_ratio=0.6), static("large"), static("small", gmacs=1 / 3, metric=0.7)]

    hull, _, points = records(pareto.chart(combine(rows)))

    assert {point["label"]: point["cost"] for point in points} == pytest.approx(
        {"fast (default)": 0.6, "large (default)": 1.0, "small (default)": 1 / 3}
    )
    assert [round(point["cost"], 3) for point in hull] == [0.333, 1.0]


def test_points_have_their_intervals_and_precision(evaluated: Make, static: Make, combine: Make, records: Make) -> None:
    rows = [evaluated(), evaluated("fast8", precision="int8", ci_low=0.7), static()]

    drawn = records(pareto.chart(combine(rows)))[-1]

    assert [(point["precision"], point["ci_low"], point["ci_high"]) for point in drawn] == [
        ("fp32", 0.8, 0.9),
        ("int8", 0.7, 0.9),
        ("fp32", 0.8, 0.9),
    ]
    assert drawn[0]["knobs"] == "threshold=0.5"


def test_static_frontier_has_the_untrained_subsets_and_is_their_upper_hull(
    evaluated: Make, static: Make, combine: Make, records: Make
) -> None:
    subset = {"yardstick": "static-frontier", "flops_ratio": 0.4, "gmacs": 0.4, "policy": "layers 1 3"}
    rows = [evaluated(), static(), static(metric=0.6, **subset), static(metric=0.3, **{**subset, "gmacs": 0.6})]

    hull, small, rules, points = records(pareto.chart(combine(rows)))

    assert [(point["cost"], point["metric"]) for point in hull] == [(0.4, 0.6), (1.0, 0.85)]
    assert len(small) == 2
    assert len(rules) == len(points) == 2


def test_metrics_on_different_texts_are_apart(evaluated: Make, combine: Make) -> None:
    chart = pareto.chart(combine([evaluated(), evaluated(data="other.tsv", gmacs=5.0)])).to_dict()

    assert [part["title"] for part in chart["vconcat"]] == ["accuracy on test.tsv", "accuracy on other.tsv"]


def test_several_thread_counts_are_one_point(evaluated: Make, combine: Make, records: Make) -> None:
    drawn = records(pareto.chart(combine([evaluated(), evaluated(threads=2)])))[-1]

    assert len(drawn) == 1


def test_nothing_evaluated(combine: Make, timed: Make) -> None:
    assert pareto.chart(combine(timed=[timed()])) is None
