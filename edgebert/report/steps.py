"""steps: where the wall time of a text goes."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import FULL_WIDTH, STATIC, chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Time per step"
CAPTION = (
    "Mean wall time inside the graphs of each kind of step, and in Python between them; 'layer + exit' is a layer with "
    "its exit linked into the same graph. Per text, or per call of random token ids where the name says so."
)
COMMAND = "edgebert bench BUNDLE... --data FILE --per-step --json"
PLACE = 5

_COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d", "#72b7b2", "#e45756"),
    *("#2f4b7c", "#a05195", "#665191", "#d45087"),
)


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where steps were not timed."""
    rows = [row for row in results.timed if row.steps_ms]
    if not rows:
        return None
    alt = load_altair()
    kinds = [*dict.fromkeys(kind for row in rows for kind in row.steps_ms if kind != "python"), "python"]
    records = [
        {
            "label": row.label,
            "step": kind,
            "ms": ms,
            "order": kinds.index(kind),
            "share": ms / (sum(row.steps_ms.values()) or 1.0),
        }
        for row in rows
        for kind, ms in row.steps_ms.items()
    ]
    return (
        chart_of(records)
        .mark_bar()
        .encode(
            x=alt.X("ms:Q", title="wall time (ms)", axis=alt.Axis(tickCount=10)),
            y=alt.Y("label:N", title=None, sort=None),
            color=alt.Color(
                "step:N",
                title=None,
                scale=alt.Scale(domain=kinds, range=[*_COLOURS[: len(kinds) - 1], STATIC]),
                legend=alt.Legend(orient="bottom", columns=6),
            ),
            order="order:Q",
            tooltip=[
                "label:N",
                "step:N",
                alt.Tooltip("ms:Q", format=".3f"),
                alt.Tooltip("share:Q", format=".1%", title="of the text's time"),
            ],
        )
        .properties(width=FULL_WIDTH, height=34 * len(rows))
    )
