"""percentiles: how the wall time of single calls is distributed."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import FULL_WIDTH, chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Latency"
CAPTION = (
    "The share of calls answered within a wall time, up to the 99th percentile; dots mark the 50th, 90th and 99th. "
    "A call is one text, or a batch of random token ids where the name says so."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --timed-texts 200 --json, or edgebert bench BUNDLE... --data FILE --json"
PLACE = 3

_LAST_PERCENT = 99
_MOST_CURVES = 20
_MARKS = (50, 90, 99)


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where calls were not timed one by one."""
    curves: list[dict[str, Any]] = [
        {"label": row.label, "ms": row.latency_quantiles_ms[: _LAST_PERCENT + 1]}
        for row in [*results.deployed, *results.timed]
        if row.latency_quantiles_ms
    ][:_MOST_CURVES]
    if not curves:
        return None
    alt = load_altair()
    x = alt.X("ms:Q", title="wall time of one call (ms)", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=10))
    y = alt.Y("percent:Q", title="calls answered (%)", scale=alt.Scale(domain=[0, 100]))
    scheme = alt.Scale(scheme="tableau10" if len(curves) <= 10 else "tableau20")
    legend = alt.Legend(orient="bottom", columns=4, symbolOpacity=1)
    colour = alt.Color("label:N", title=None, scale=scheme, legend=legend, sort=None)
    tooltip = [alt.Tooltip("label:N"), alt.Tooltip("percent:Q"), alt.Tooltip("ms:Q", format=".3f")]
    line = chart_of(curves).transform_calculate(percent=f"sequence(0, {_LAST_PERCENT + 1})")
    lines = line.transform_flatten(["ms", "percent"]).mark_line().encode(x=x, y=y, color=colour)
    marks = chart_of(
        [
            {"label": curve["label"], "percent": percent, "ms": curve["ms"][percent]}
            for curve in curves
            for percent in _MARKS
            if percent < len(curve["ms"])
        ]
    )
    dots = marks.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    return alt.layer(lines, dots).properties(width=FULL_WIDTH, height=320)
