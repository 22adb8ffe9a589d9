"""exits: how many layers ran on texts that were answered right and on those answered wrong."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import MOST_PANELS, RIGHT, WRONG, chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Layers run, by right and wrong answers"
CAPTION = (
    "How many layers ran on a text, as a share of all texts; models that run the same number on every text are left "
    "out."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --json"
PLACE = 4


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where every model runs the same number of layers on every text."""
    rows = [row for row in results.models if sum(map(any, zip(*row.exit_histogram.values(), strict=False))) > 1]
    records = [
        {
            "label": row.label,
            "layers": layers,
            "answer": answer,
            "texts": texts,
            "share": texts / (sum(map(sum, row.exit_histogram.values())) or 1),
        }
        for row in rows[:MOST_PANELS]
        for answer, counts in row.exit_histogram.items()
        for layers, texts in enumerate(counts, 1)
    ]
    if not records:
        return None
    alt = load_altair()
    answers = alt.Scale(domain=["right", "wrong", "all"], range=[RIGHT, WRONG, RIGHT])
    shown = list(dict.fromkeys(record["answer"] for record in records))
    bars = (
        chart_of(records)
        .mark_bar()
        .encode(
            x=alt.X("layers:O", title="layers run", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="texts", axis=alt.Axis(format="%")),
            color=alt.Color("answer:N", title="answer", scale=answers, legend=alt.Legend(values=shown)),
            tooltip=["label:N", "layers:O", "answer:N", "texts:Q", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=190, height=130)
    )
    return bars.facet(alt.Facet("label:N", title=None, sort=None, header=alt.Header(labelLimit=190)), columns=3)
