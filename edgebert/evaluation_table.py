"""The rows of an evaluation as a person or a spreadsheet reads them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgebert.output import markdown_table

Row = Mapping[str, Any]


def _number(key: str, form: str) -> Callable[[Row], str]:
    return lambda row: form.format(row[key]) if row.get(key) is not None else ""


def _tokens(row: Row) -> str:
    kept = row.get("mean_kept_tokens")
    return "" if kept is None else f"{kept:.1f} of {row['mean_tokens']:.1f}"


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("bundle", _number("bundle", "{}")),
    ("policy", lambda row: row["policy"] if row["rule"] == row["policy"] else f"{row['policy']}: {row['rule']}"),
    ("knobs", lambda row: _knobs(row) or "-"),
    ("precision", _number("precision", "{}")),
    ("threads", _number("threads", "{}")),
    ("n", _number("n", "{}")),
    ("metric", _number("metric", "{:.4f}")),
    ("95 %", lambda row: f"{row['ci_low']:.4f}-{row['ci_high']:.4f}"),
    ("layers", lambda row: f"{row['mean_layers']:.2f} of {row['layers']}"),
    ("tokens", _tokens),
    ("width", _number("mean_width", "{:.2f}")),
    ("FLOPs", _number("flops_ratio", "{:.3f}")),
    ("ms/text", _number("mean_ms", "{:.2f}")),
    ("p50", _number("p50_ms", "{:.2f}")),
    ("p90", _number("p90_ms", "{:.2f}")),
    ("p99", _number("p99_ms", "{:.2f}")),
    ("texts/s", _number("texts_per_s", "{:.0f}")),
    ("size MB", _number("size_mb", "{:.1f}")),
    ("private MB", _number("private_mb", "{:.0f}")),
    (
        "mJ/text in batches",
        lambda row: f"{1000 * row['energy_j']:.1f} ({row['energy_source']})" if row.get("energy_j") is not None else "",
    ),
    ("agreement", _number("agreement", "{:.4f}")),
    ("as fp32", _number("fp32_agreement", "{:.4f}")),
    ("flips", _number("decision_flips", "{:.4f}")),
)


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Returns a result as a Markdown table, with a line for every comparison."""
    lines = [markdown_table(*evaluation_cells(result["rows"]))]
    for row in result["rows"]:
        name = f"{row['bundle']} ({row['policy']})"
        lines += [f"{name} {_against_line(row['against'])}"] if "against" in row else []
        lines += (
            [f"{name} {_mixture_line(row['frontier'], 'the static frontier', 'cost')}"] if "frontier" in row else []
        )
        if "fixed_exits" in row:
            lines.append(f"{name} {_mixture_line(row['fixed_exits'], 'its own fixed exits', 'depth')}")
        if row.get("n_paths", 1) > 1:
            shares = " ".join(f"{share:.2f}" for share in row["layer_share"])
            lines.append(
                f"{name} took {row['n_paths']} paths ({row['path_entropy_bits']:.2f} bits); layers run: {shares}"
            )
    return "\n".join(lines)


def evaluation_cells(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the headings of a table of rows, and each row's cells; columns that no row fills are left out."""
    cells = [(heading, [cell(row) for row in rows]) for heading, cell in _COLUMNS]
    shown = [(heading, column) for heading, column in cells if any(column)]
    return [heading for heading, _ in shown], list(zip(*(column for _, column in shown), strict=True))


def _points(entry: Mapping[str, float]) -> str:
    return (
        f"{100 * entry['difference']:+.2f} points (95 %: {100 * entry['ci_low']:+.2f} to {100 * entry['ci_high']:+.2f})"
    )


def _against_line(entry: Mapping[str, Any]) -> str:
    test = f", McNemar p {entry['mcnemar_p']:.3g}" if "mcnemar_p" in entry else ""
    return f"against {entry['bundle']} at {entry['metric']:.4f}: {_points(entry)}{test}"


def _mixture_line(entry: Mapping[str, Any], rival: str, equal: str) -> str:
    verdict = "above" if entry["ci_low"] > 0 else "below" if entry["ci_high"] < 0 else "not distinguishable from"
    return (
        f"is {verdict} {rival} at equal {equal}, {entry['metric']:.4f}: {_points(entry)}; "
        f"between {' and '.join(entry['between'])}"
    )


def evaluation_csv(result: Mapping[str, Any]) -> str:
    """Returns the rows of a result as CSV: a column for every plain field, nested ones as `field.part`, no lists."""
    rows = [_flat(row) for row in result["rows"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in row.items():
        if key == "knobs":
            fields[key] = _knobs(row)
        elif isinstance(value, Mapping):
            fields |= {f"{key}.{part}": inner for part, inner in _flat(value).items()}
        elif isinstance(value, str) or not isinstance(value, Sequence):
            fields[key] = value
    return fields


def _knobs(row: Row) -> str:
    return ", ".join(f"{knob}={value}" for knob, value in row["knobs"].items())
