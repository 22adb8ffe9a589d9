"""A metric against a cost: every model a point, and the line that the static ones reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgebert.report._drawing import FULL_WIDTH, STATIC, chart_of, load_altair
from edgebert.report._results import Evaluated
from edgebert.statistics import upper_hull


def against_cost(
    rows: Sequence[Evaluated],
    cost: Callable[[Evaluated], float],
    methods: Sequence[str],
    title: str,
    form: str,
    group: Callable[[Evaluated], str] = lambda row: row.question,
) -> Any:
    """Returns a chart of rows' metrics against their cost; one below the other for rows that do not compare.

    Args:
        rows: The rows, yardsticks among them.
        cost: What a row costs.
        methods: All methods of the report, so that a method has the same colour everywhere.
        title: Of the cost's axis.
        form: How the cost is written, as d3-format has it.
        group: What rows that compare have in common; the title of their chart.
    """
    alt = load_altair()
    questions = list(dict.fromkeys(group(row) for row in rows))
    charts = []
    for question in questions:
        chart = _one([row for row in rows if group(row) == question], cost, methods, title, form)
        charts.append(chart.properties(width=FULL_WIDTH if len(questions) == 1 else 560, height=340, title=question))
    return charts[0] if len(charts) == 1 else alt.vconcat(*charts)


def _one(
    rows: Sequence[Evaluated], cost: Callable[[Evaluated], float], methods: Sequence[str], title: str, form: str
) -> Any:
    alt = load_altair()
    models = [row for row in rows if row.yardstick is None]
    static = [row for row in rows if row.is_static]
    hull = [static[i] for i in upper_hull([(cost(row), row.metric) for row in static])]
    low, high = min(row.ci_low for row in models), max(row.ci_high for row in models)
    margin = 0.05 * (high - low) or 0.01
    x = alt.X(
        "cost:Q", title=title, scale=alt.Scale(zero=True), axis=alt.Axis(format=form, tickCount=10, labelFlush=False)
    )
    y = alt.Y("metric:Q", title=rows[0].metric_name, scale=alt.Scale(domain=[low - margin, high + margin], zero=False))
    colour = alt.Color(
        "method:N",
        title="method",
        scale=alt.Scale(domain=list(methods), scheme="tableau10"),
        legend=alt.Legend(symbolOpacity=1),
    )
    tooltip = [
        alt.Tooltip("label:N", title="model"),
        alt.Tooltip("rule:N", title="policy"),
        alt.Tooltip("knobs:N", title="knobs"),
        alt.Tooltip("metric:Q", format=".4f", title=rows[0].metric_name),
        alt.Tooltip("ci_low:Q", format=".4f", title="95 % from"),
        alt.Tooltip("ci_high:Q", format=".4f", title="95 % to"),
        alt.Tooltip("cost:Q", format=form, title="cost"),
        alt.Tooltip("layers:Q", format=".2f", title="layers"),
        alt.Tooltip("n:Q", title="texts"),
    ]
    points = chart_of([_record(row, cost) for row in models])
    layers = [
        points.mark_rule(opacity=0.55).encode(x=x, y=alt.Y("ci_low:Q"), y2="ci_high:Q", color=colour),
        points.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, y=y, color=colour, shape=alt.Shape("precision:N", title="precision"), tooltip=tooltip
        ),
    ]
    others = [_record(row, cost) for row in rows if row.yardstick is not None]
    if others:
        faint = chart_of(others).mark_point(filled=True, size=22, opacity=0.45, clip=True)
        layers.insert(0, faint.encode(x=x, y=y, color=colour, tooltip=tooltip))
    if hull:
        line = chart_of([{"cost": cost(row), "metric": row.metric} for row in hull])
        layers.insert(0, line.mark_line(color=STATIC, strokeDash=[5, 4], clip=True).encode(x=x, y=y))
    return alt.layer(*layers)


def _record(row: Evaluated, cost: Callable[[Evaluated], float]) -> dict[str, Any]:
    return {
        "label": row.label,
        "method": row.method,
        "precision": row.precision,
        "rule": row.rule,
        "knobs": row.knobs_text or "none",
        "metric": row.metric,
        "ci_low": row.ci_low,
        "ci_high": row.ci_high,
        "cost": cost(row),
        "layers": row.mean_layers,
        "n": row.n,
    }
