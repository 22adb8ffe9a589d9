"""wall_time: the metric against the wall time of one text."""

from __future__ import annotations

from typing import Any

from edgebert.report._points import against_cost
from edgebert.report._results import Evaluated, Results

TITLE = "Metric against wall time"
CAPTION = (
    "The same models by the median wall time of one text, from token ids to result; the dashed line is what the static "
    "models among them reach."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --timed-texts 200 --json"
PLACE = 2


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where no text was timed alone."""
    if not results.deployed:
        return None
    title = "median wall time of one text (ms)"
    return against_cost(results.deployed, lambda row: row.p50_ms or 0.0, results.methods, title, ".3~s", _conditions)


def _conditions(row: Evaluated) -> str:
    """Times on other processors, or with other threads, do not compare."""
    return f"{row.question}, {row.threads} thread{'s' if row.threads != 1 else ''}, {row.processor}"
