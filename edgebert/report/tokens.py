"""tokens: the first sentences, each token the lighter the earlier it was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgebert.report._drawing import chart_of, load_altair
from edgebert.report._results import Results

TITLE = "Tokens that were dropped"
CAPTION = (
    "The black tokens went through all layers; the lighter one is, the earlier it was dropped. Long texts are cut here."
)
COMMAND = "edgebert eval BUNDLE... --data FILE --maps 3 --json, for a bundle of dynamic_tinybert"
PLACE = 8

_COLUMNS = 100
_CHARACTER_PIXELS, _LINE_PIXELS = 7.3, 20
_MOST_MODELS, _MOST_TEXTS, _MOST_TOKENS = 4, 3, 150


def chart(results: Results) -> Any | None:
    """Returns the chart, or None where no model drops tokens, or the results do not tell which."""
    rows = [row for row in results.models if row.maps.tokens][:_MOST_MODELS]
    if not rows:
        return None
    headings: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    line = 0
    for row in rows:
        for number, tokens in enumerate(row.maps.tokens[:_MOST_TEXTS], 1):
            kept = tokens[:_MOST_TOKENS]
            cut = f", the first {_MOST_TOKENS} of {len(tokens)} tokens" if len(tokens) > len(kept) else ""
            headings.append({"line": line, "column": 0, "text": f"{row.label}: text {number}{cut}"})
            last = 0
            for down, column, (token, layers) in _set_in_lines(kept):
                last = down
                words.append(
                    {
                        "line": line + 1 + down,
                        "column": column,
                        "text": token,
                        "layers": layers,
                        "of": row.layers,
                        "share": layers / row.layers,
                    }
                )
            line += last + 3
    alt = load_altair()
    x = alt.X("column:Q", axis=None, scale=alt.Scale(domain=[0, _COLUMNS], nice=False))
    y = alt.Y("line:Q", axis=None, scale=alt.Scale(domain=[line - 1, -1], nice=False))
    text = {"align": "left", "baseline": "middle", "fontSize": 12}
    greys = alt.Scale(domain=[0, 1], range=["#bcbcbc", "#000000"])
    bold = chart_of(headings).mark_text(**text, fontWeight="bold").encode(x=x, y=y, text="text:N")
    grey = (
        chart_of(words)
        .mark_text(**text, font="monospace")
        .encode(
            x=x,
            y=y,
            text="text:N",
            color=alt.Color(
                "share:Q",
                title="share of the layers a token went through",
                scale=greys,
                legend=alt.Legend(orient="top", format=".0%"),
            ),
            tooltip=[
                alt.Tooltip("text:N", title="token"),
                alt.Tooltip("layers:Q", title="layers it went through"),
                "of:Q",
            ],
        )
    )
    return alt.layer(bold, grey).properties(width=round(_COLUMNS * _CHARACTER_PIXELS), height=_LINE_PIXELS * (line + 1))


def _set_in_lines(tokens: Sequence[tuple[str, int]]) -> Iterator[tuple[int, int, tuple[str, int]]]:
    """Gives each token its line and its column; one longer than a line is cut."""
    line = column = 0
    for text, layers in tokens:
        shown = text[:_COLUMNS]
        if column and column + len(shown) > _COLUMNS:
            line, column = line + 1, 0
        yield line, column, (shown, layers)
        column += len(shown) + 1
