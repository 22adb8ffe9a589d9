"""What scaling a bundle gave, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebert.output import markdown_table


def scale_table(result: Mapping[str, Any]) -> str:
    """Returns a result of `scale_bundle` as markdown: the stream, the grid, and the model with its error."""
    parts = []
    if result["stream"] is not None:
        parts.append(_stream(result["stream"]))
    parts += [_grid(result), _model(result["model"])]
    return "\n\n".join(parts)


def _stream(stream: Mapping[str, Any]) -> str:
    rows = [
        [
            row["texts"],
            f"{row['private_mb']:.1f}",
            f"{row['texts_per_s']:.0f}",
        ]
        for row in stream["checkpoints"]
    ]
    growth = stream["growth_percent"]
    memory = "not known: too few texts" if growth is None else f"at most {growth:.2f} %"
    return "\n".join(
        [
            markdown_table(["texts", "private MB", "texts/s"], rows),
            "",
            f"- {stream['texts']} texts in batches of {stream['batch']}: {stream['texts_per_s']:.0f} texts/s, "
            f"{stream['ratio']:.3f} of what the same texts give as a list",
            f"- private memory after the first {stream['warm_up_texts']} texts: {stream['warm_up_mb']:.1f} MB; "
            f"growth after that: {memory}",
        ]
    )


def _grid(result: Mapping[str, Any]) -> str:
    rows = [
        [
            ", ".join(f"{knob} {value}" for knob, value in point["knobs"].items()) or "all",
            point["length"],
            point["batch"],
            f"{point['gmacs_per_row']:.3f}",
            f"{point['mean_ms']:.2f}",
            f"{point['row_ms']:.3f}",
        ]
        for point in result["grid"]
    ]
    return markdown_table(["runs", "tokens", "batch", "GMACs a row", "ms a call", "ms a row"], rows)


def _model(model: Mapping[str, Any]) -> str:
    median, most, nearly = (_percent(model[f"{kind}_relative_error"]) for kind in ("median", "max", "p90"))
    lines = [
        f"- time of a call = {model['fixed_ms']:.4f} ms x {model['unit']} + {model['ms_per_gmac']:.3f} ms x GMACs",
        f"- each {model['left_out']} left out in turn, its relative error is {median} in the median, {nearly} at the "
        f"90th percentile, {most} at most",
    ]
    lines += [
        f"- with {form['unit']} as the unit: median {_percent(form['median_relative_error'])}, most "
        f"{_percent(form['max_relative_error'])}"
        for form in model["forms"]
        if form["unit"] != model["unit"]
    ]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
