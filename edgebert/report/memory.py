"""memory: how large bundles are on disk and in memory."""

from __future__ import annotations

from typing import Any

from edgebert.report._drawing import FULL_WIDTH, chart_of, load_altair
from edgebert.report._results import Evaluated, Results

TITLE = "Size and memory"
CAPTION = (
    "The graphs of each bundle on disk, and the private memory of a process that runs it, above what its libraries "
    "take (the most of its policies and threads)."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --timed-texts 200 --json"
PLACE = 9

_DISK, _MEMORY = "on disk", "private memory"


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where nothing was evaluated."""
    bundles: dict[tuple[str, str], list[Evaluated]] = {}
    for row in results.evaluated:
        if row.yardstick is None:
            bundles.setdefault((row.name, row.precision), []).append(row)
    records = []
    for (name, precision), rows in bundles.items():
        used = [row.private_mb for row in rows if row.private_mb is not None]
        for what, megabytes in ((_DISK, rows[0].size_mb), (_MEMORY, max(used, default=None))):
            if megabytes is not None:
                records.append({"bundle": f"{name}, {precision}", "what": what, "mb": megabytes})
    if not records:
        return None
    alt = load_altair()
    return (
        chart_of(records)
        .mark_bar()
        .encode(
            x=alt.X("mb:Q", title="MB", axis=alt.Axis(tickCount=10)),
            y=alt.Y("bundle:N", title=None, sort=None),
            yOffset=alt.YOffset("what:N", sort=[_DISK, _MEMORY]),
            color=alt.Color("what:N", title=None, sort=[_DISK, _MEMORY], scale=alt.Scale(scheme="tableau10")),
            tooltip=["bundle:N", "what:N", alt.Tooltip("mb:Q", format=".1f")],
        )
        .properties(width=FULL_WIDTH, height=30 * len(bundles))
    )
