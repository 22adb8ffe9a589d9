from collections.abc import Callable
from typing import Any

from edgebert.report import memory

Make = Callable[..., Any]


def test_a_bundle_once_with_the_most_memory_it_took(evaluated: Make, combine: Make, records: Make) -> None:
    rows = [
        evaluated(private_mb=100.0),
        evaluated(private_mb=120.0, policy="entropy"),
        evaluated("fast8", precision="int8", size_mb=24.0),
        evaluated(yardstick="fixed-exits", private_mb=500.0),
    ]

    (bars,) = records(memory.chart(combine(rows)))

    assert [(bar["bundle"], bar["what"], bar["mb"]) for bar in bars] == [
        ("fast, fp32", "on disk", 90.0),
        ("fast, fp32", "private memory", 120.0),
        ("fast8, int8", "on disk", 24.0),
    ]


def test_nothing_evaluated(timed: Make, combine: Make) -> None:
    assert memory.chart(combine(timed=[timed()])) is None
