"""What charts share: altair, loaded when it is needed, sizes and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from edgebert.errors import require

FULL_WIDTH = "container"
"""The width of a chart that fills the page."""

RIGHT, WRONG, RAN, STATIC = "#3b7ea1", "#e07b39", "#2f5d8a", "#8a8a8a"
MOST_PANELS = 24

_FONT = "DejaVu Sans, Verdana, sans-serif"  # alike in width, so that text fits in an SVG wherever it is opened

_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 320},
    "legend": {
        "columnPadding": 20,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 320,
    },
    "header": {"labelFontSize": 12, "labelFontWeight": "bold", "labelLimit": 330, "titleFontSize": 12},
    "title": {"fontSize": 12, "anchor": "start"},
    "view": {"stroke": "#dddddd"},
}


def load_altair() -> ModuleType:
    """Returns altair.

    Raises:
        MissingExtraError: It is not installed.
    """
    return require("altair", extra="report", purpose="edgebert report")


def load_converter() -> ModuleType:
    """Returns vl_convert, which has the JavaScript of the page and makes SVG.

    Raises:
        MissingExtraError: It is not installed.
    """
    return require("vl_convert", extra="report", purpose="edgebert report")


def chart_of(records: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a chart with these records for its data."""
    alt = load_altair()
    return alt.Chart(alt.Data(values=[dict(record) for record in records]))


def specification(chart: Any) -> dict[str, Any]:
    """Returns a chart's Vega-Lite specification, in the look of all charts."""
    spec: dict[str, Any] = chart.to_dict()
    return {**spec, "config": _CONFIG}
