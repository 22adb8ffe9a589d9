"""Small hand-made rows, as the readers of results give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from edgebert.report._results import Evaluated, Maps, Results, Timed

Evaluate = Callable[..., Evaluated]
Time = Callable[..., Timed]
Combine = Callable[..., Results]


@pytest.fixture
def evaluated() -> Evaluate:
    """Makes an evaluated row, of a model of 3 layers that stops early."""

    def make(name: str = "fast", **changes: Any) -> Evaluated:
        maps = Maps(**changes.pop("maps", {}))
        row = Evaluated(
            bundle=f"{name}.bundle",
            method="fastbert",
            policy="default",
            knobs={"threshold": 0.5},
            precision="fp32",
            threads=1,
            mean_layers=2.0,
            name=name,
            label=f"{name} (default)",
            data="test.tsv",
            rule="entropy",
            n=40,
            metric_name="accuracy",
            metric=0.85,
            ci_low=0.8,
            ci_high=0.9,
            layers=3,
            flops_ratio=0.5,
            gmacs=0.5,
            exit_histogram={"right": [10, 14, 10], "wrong": [1, 2, 3]},
            size_mb=90.0,
            mean_ms=4.0,
            texts_per_s=250.0,
            maps=maps,
        )
        return msgspec.structs.replace(row, **changes)

    return make


@pytest.fixture
def static(evaluated: Evaluate) -> Evaluate:
    """Makes an evaluated row of a static model."""

    def make(name: str = "plain", **changes: Any) -> Evaluated:
        plain = {"method": "plain", "rule": "never", "flops_ratio": 1.0, "gmacs": 1.0}
        return evaluated(name, **{**plain, "exit_histogram": {"right": [0, 0, 34], "wrong": [0, 0, 6]}, **changes})

    return make


@pytest.fixture
def timed() -> Time:
    """Makes a timed row."""

    def make(name: str = "fast", **changes: Any) -> Timed:
        row = Timed(
            bundle=f"{name}.bundle",
            method="fastbert",
            policy="entropy",
            precision="fp32",
            threads=1,
            mean_layers=2.0,
            name=name,
            label=f"{name} (entropy)",
            batch=1,
            seq_len=None,
            scenario="single-stream",
            mean_ms=4.0,
            min_ms=3.0,
            max_ms=5.0,
            p50_ms=4.0,
            p90_ms=4.5,
            p99_ms=5.0,
            texts_per_s=250.0,
            first_ms=9.0,
        )
        return msgspec.structs.replace(row, **changes)

    return make


@pytest.fixture
def combine() -> Combine:
    """Makes results of rows."""

    def make(evaluated: Sequence[Evaluated] = (), timed: Sequence[Timed] = ()) -> Results:
        return Results(evaluated=evaluated, timed=timed, ratios=[], hosts={})

    return make


@pytest.fixture
def records() -> Callable[[Any], list[list[dict[str, Any]]]]:
    """Returns what a chart draws: the values of each of its layers."""

    def read(chart: Any) -> list[list[dict[str, Any]]]:
        found: list[list[dict[str, Any]]] = []

        def visit(part: Any) -> None:
            if isinstance(part, dict):
                if "values" in part.get("data", {}):
                    found.append(part["data"]["values"])
                for value in part.values():
                    visit(value)
            elif isinstance(part, list):
                for value in part:
                    visit(value)

        visit(chart.to_dict())
        return found

    return read
