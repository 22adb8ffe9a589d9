"""The rows, ratios and fits of a timing as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgebert.bench._rows import FEWEST_PAIRS
from edgebert.output import markdown_table

_COLUMNS = (
    ("bundle", "bundle", "{}"),
    ("method", "method", "{}"),
    ("policy", "policy", "{}"),
    ("precision", "precision", "{}"),
    ("threads", "threads", "{}"),
    ("batch", "batch", "{}"),
    ("tokens", "seq_len", "{}"),
    ("scenario", "scenario", "{}"),
    ("metric", "metric", "{:.4f}"),
    ("layers", "mean_layers", "{:.2f}"),
    ("tokenize ms", "tokenize_ms", "{:.3f}"),
    ("first ms", "first_ms", "{:.2f}"),
    ("mean ms", "mean_ms", "{:.3f}"),
    ("min", "min_ms", "{:.3f}"),
    ("max", "max_ms", "{:.3f}"),
    ("p50", "p50_ms", "{:.3f}"),
    ("p90", "p90_ms", "{:.3f}"),
    ("p99", "p99_ms", "{:.3f}"),
    ("texts/s", "texts_per_s", "{:.1f}"),
    ("private MB", "private_mb", "{:.0f}"),
    ("J/text", "energy_j", "{:.4f}"),
    ("energy", "energy_source", "{}"),
)


def table(result: Mapping[str, Any]) -> str:
    """Returns a result of `bench_bundles` as a markdown table, then lines for ratios, fits and the steps of rows."""
    columns = _filled_columns(result["rows"])
    lines = [
        "| " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|" + "|".join("---:" if form != "{}" else "---" for _, _, form in columns) + "|",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in table_cells(result["rows"])[1]]
    steps = [_steps_line(row) for row in result["rows"] if "steps_ms" in row]
    notes = [*map(ratio_line, result["ratios"]), *map(_fit_line, result["fits"]), *steps]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def cold_table(result: Mapping[str, Any]) -> str:
    """Returns a result of `bench_cold` as a markdown table, then lines for ratios."""
    rows = [
        [
            "" if row[key] is None else f"{row[key]:.0f}" if isinstance(row[key], float) else str(row[key])
            for key in ("bundle", "precision", "prepared", "threads", "cold_ms", "min_ms", "max_ms", "private_mb")
        ]
        for row in result["rows"]
    ]
    lines = [
        markdown_table(["bundle", "precision", "prepared", "threads", "cold ms", "min", "max", "private MB"], rows)
    ]
    return "\n".join([*lines, *(["", *map(ratio_line, result["ratios"])] if result["ratios"] else [])])


def table_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the headings of a table of rows, and each row's cells; columns that no row fills are left out."""
    columns = _filled_columns(rows)
    cells = [tuple("" if row[key] is None else form.format(row[key]) for _, key, form in columns) for row in rows]
    return [heading for heading, _, _ in columns], cells


def _filled_columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]


def _where(entry: Mapping[str, Any]) -> str:
    threads = f"{entry['threads']} thread{'s' if entry['threads'] > 1 else ''}"
    if "batch" not in entry:
        return threads
    tokens = f", {entry['seq_len']} tokens" if entry["seq_len"] else f", {entry['scenario']}"
    batch = f"batch {entry['batch']}"
    if entry.get("against_batch", entry["batch"]) != entry["batch"]:
        batch += f" against {entry['against_batch']}"
    return f"{threads}, {batch}{tokens}"


def ratio_line(ratio: Mapping[str, Any]) -> str:
    """Returns a ratio of a result as a line."""
    line = f"- {ratio['bundle']} / {ratio['against']} ({_where(ratio)}): time ratio {ratio['ratio']:.3f}"
    if ratio["ci_low"] is None:
        return f"{line} ({len(ratio['pairs'])} of the {FEWEST_PAIRS} repeats that an interval needs)"
    line += f" (95 % {ratio['ci_low']:.3f} to {ratio['ci_high']:.3f}, {len(ratio['pairs'])} repeats)"
    if ratio["winner"] is None:
        return f"{line}; no winner, the interval includes 1"
    times = ratio["ratio"] if ratio["ratio"] > 1 else 1 / ratio["ratio"]
    return f"{line}; {ratio['winner']} is {times:.2f} x faster in wall time"


def _fit_line(fit: Mapping[str, Any]) -> str:
    return (
        f"- {fit['bundle']} ({_where(fit)}): time = {fit['fixed_ms']:.3f} ms + k x {fit['layer_ms']:.3f} ms; "
        f"largest relative error {100 * fit['max_relative_error']:.1f} %"
    )


def _steps_line(row: Mapping[str, Any]) -> str:
    times = ", ".join(f"{kind} {ms:.3f} ms" for kind, ms in row["steps_ms"].items())
    return f"- {row['bundle']} ({_where(row)}): {times}"
