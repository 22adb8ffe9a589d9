"""widths: how often each head and each block of neurons ran."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import MOST_PANELS, chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Which heads and blocks ran"
CAPTION = "The share of texts on which each attention head and each block of feed-forward neurons ran, layer by layer."
COMMAND = "edgebert eval BUNDLE... --data FILE --maps 1 --json, for a bundle of tbert"
PLACE = 7


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where no model chooses pieces of layers, or the results do not tell which."""
    rows = [row for row in results.models if row.maps.keep_rates][: MOST_PANELS // 2]
    records = [
        {"panel": f"{row.label}: {kind}s", "layer": layer, "rate": rates}
        for row in rows
        for kind, layers in row.maps.keep_rates.items()
        for layer, rates in enumerate(layers, 1)
    ]
    if not records:
        return None
    alt = load_altair()
    cells = (
        chart_of(records)
        .transform_calculate(piece="sequence(1, length(datum.rate) + 1)")
        .transform_flatten(["rate", "piece"])
        .mark_rect(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("piece:O", title="number", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer"),
            color=alt.Color(
                "rate:Q",
                title="texts",
                scale=alt.Scale(domain=[0, 1], scheme="blues"),
                legend=alt.Legend(format="%"),
            ),
            tooltip=["panel:N", "layer:O", "piece:O", alt.Tooltip("rate:Q", format=".1%")],
        )
        .properties(width=310, height=alt.Step(20))
    )
    return cells.facet(alt.Facet("panel:N", title=None, sort=None), columns=2).resolve_scale(x="independent")
