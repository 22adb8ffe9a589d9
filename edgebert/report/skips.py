"""skips: which layers ran on each of the first texts."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import MOST_PANELS, RAN, chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Which layers ran"
CAPTION = (
    "One column for each of the first texts, those with the fewest layers first; a dark cell is a layer that ran. "
    "Models that run the same layers on every text are left out."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --maps 60 --json"
PLACE = 6

_MOST_TEXTS = 120


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where the results do not tell paths, or all texts took the same."""
    records = [
        {"label": row.label, "text": number, "place": place, "path": path}
        for row in [row for row in results.models if len(set(row.maps.paths)) > 1][:MOST_PANELS]
        for place, (number, path) in enumerate(_sorted(row.maps.paths[:_MOST_TEXTS]), 1)
    ]
    if not records:
        return None
    alt = load_altair()
    cells = (
        chart_of(records)
        .transform_calculate(ran="split(datum.path, '')", layer="sequence(1, length(datum.path) + 1)")
        .transform_flatten(["ran", "layer"])
        .transform_calculate(state="datum.ran == '1' ? 'ran' : 'did not run'")
        .mark_rect(stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("place:O", title="texts", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("layer:O", title="layer"),
            color=alt.Color(
                "state:N", title=None, scale=alt.Scale(domain=["ran", "did not run"], range=[RAN, "#e3e3e3"])
            ),
            tooltip=["label:N", alt.Tooltip("text:Q", title="text number"), "layer:O", "state:N"],
        )
        .properties(width=330, height=alt.Step(15))
    )
    return cells.facet(alt.Facet("label:N", title=None, sort=None), columns=2).resolve_scale(x="independent")


def _sorted(paths: list[str]) -> list[tuple[int, str]]:
    return sorted(enumerate(paths), key=lambda entry: (entry[1].count("1"), entry[1], entry[0]))
