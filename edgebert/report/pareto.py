"""pareto: the metric against multiply-accumulates, with the line that static models reach."""

from __future__ import annotations

from typing import Any

from edgebert.report._points import against_cost
from edgebert.report._results import Results

TITLE = "Metric against computation"
CAPTION = (
    "Each point is a model under a policy with its 95 % interval; the dashed line is what static models of any depth, "
    "and untrained subsets of their layers, reach (small points are those and fixed exits)."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --against static-frontier --json"
PLACE = 1


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where nothing was evaluated."""
    if not results.models:
        return None
    # A bundle's own ratio is to its own depth; models of different depth compare by what the deepest of them spends.
    full = {
        question: max(row.gmacs / row.flops_ratio for row in results.models if row.question == question)
        for question in {row.question for row in results.models}
    }
    yardsticks = [row for row in results.evaluated if row.yardstick is not None and row.question in full]
    return against_cost(
        [*results.models, *yardsticks],
        lambda row: row.gmacs / full[row.question],
        results.methods,
        "multiply-accumulates, share of the largest model at full depth",
        ".2f",
    )
