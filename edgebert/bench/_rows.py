"""What a bench makes of its records: rows, the ratios of two sides, and fits over exit layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.rivals._turns import Record
from edgebert.statistics import quantile_curve

FEWEST_PAIRS = 5
"""The smallest and the largest of 5 hold the median with 94 %, so no interval from fewer means what it says."""

_RESAMPLES = 2000


def make_row(record: Record) -> dict[str, Any]:
    """Returns one row of the result."""
    side, case, prepared, ready = record.side, record.case, record.prepared, record.process.ready
    longest = side.bundle.manifest.encoder.max_length
    unit = 1 if case.texts else prepared.texts_per_call
    repeats_ms = record.text_ms() * unit
    row: dict[str, Any] = {
        "bundle": side.label,
        "rival_of": side.rival_of,
        "method": ready.method,
        "policy": ready.policy,
        "knobs": ready.knobs,
        "precision": ready.precision,
        "provider": side.spec.provider,
        "threads": record.process.threads,
        "batch": case.batch,
        "seq_len": case.length or None,
        "max_length": min(case.max_length or longest, longest) if case.texts else None,
        "scenario": case.scenario if case.texts else None,
        "n": prepared.texts_per_call * len(record.timed[0].call_ms),
        "mean_layers": float(np.mean([turn.mean_layers for turn in record.timed])),
        "mean_tokens": prepared.mean_tokens,
        "tokenize_ms": prepared.tokenize_ms,
        "load_ms": ready.load_ms,
        "first_ms": prepared.first_ms,
        "mean_ms": float(np.median(repeats_ms)),
        "min_ms": float(repeats_ms.min()),
        "max_ms": float(repeats_ms.max()),
    }
    is_list = case.scenario == "offline"
    calls_ms = [call_ms for turn in record.timed for call_ms in turn.call_ms]
    for percent in (50, 90, 99):
        row[f"p{percent}_ms"] = None if is_list else float(np.percentile(calls_ms, percent))
    row["latency_quantiles_ms"] = None if is_list else quantile_curve(calls_ms)
    row["texts_per_s"] = 1000.0 * unit / row["mean_ms"]
    row |= record.footprint()
    row |= record.step_times()
    row |= {"metric_name": record.metric_name, "metric": record.metric}
    row["repeats_ms"] = repeats_ms.tolist()
    row["turns"] = record.turns
    row["pid"] = ready.pid
    return row


def make_ratio(ours: Record, rival: Record) -> dict[str, Any]:
    """Returns the bundle's time over the rival's, per text, from the repeats as pairs.

    The interval is a 95 % percentile bootstrap of the median over the pairs; a winner is named only when it leaves
    1 out. Fewer than 5 pairs have no interval and no winner.
    """
    return {
        "bundle": ours.side.label,
        "against": rival.side.label,
        "threads": ours.process.threads,
        "batch": ours.case.batch,
        "against_batch": rival.case.batch,
        "seq_len": ours.case.length or None,
        "scenario": ours.case.scenario if ours.case.texts else None,
        **compare(ours.text_ms() / rival.text_ms(), ours.side.label, rival.side.label),
    }


def compare(pairs: NDArray[np.float64], ours: str, rival: str) -> dict[str, Any]:
    """Returns what pairs of times, ours over the rival's, float64 [repeats], say together; see `make_ratio`."""
    low, high = _median_interval(pairs) if len(pairs) >= FEWEST_PAIRS else (None, None)
    winner = None
    if low is not None and high is not None and not low <= 1.0 <= high:
        winner = ours if high < 1.0 else rival
    return {
        "ratio": float(np.median(pairs)),
        "ci_low": low,
        "ci_high": high,
        "min": float(pairs.min()),
        "max": float(pairs.max()),
        "pairs": pairs.tolist(),
        "winner": winner,
    }


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    resamples = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    return float(low), float(high)


def make_fit(records: Sequence[Record]) -> dict[str, Any]:
    """Fits time = fixed + k x layer, least squares, to the median call of each exit layer k."""
    layers = [int(record.case.knobs["layer"] or 0) for record in records]
    call_ms = [float(np.median(record.text_ms())) * record.prepared.texts_per_call for record in records]
    layer_ms, fixed_ms = (float(value) for value in np.polyfit(layers, call_ms, 1))
    errors = [abs(fixed_ms + k * layer_ms - ms) / ms for k, ms in zip(layers, call_ms, strict=True)]
    first = records[0]
    return {
        "bundle": first.side.label,
        "threads": first.process.threads,
        "batch": first.case.batch,
        "seq_len": first.case.length,
        "fixed_ms": fixed_ms,
        "layer_ms": layer_ms,
        "fixed_over_layer": fixed_ms / layer_ms if layer_ms else None,
        "max_relative_error": max(errors),
        "exit_layers": layers,
        "mean_ms": call_ms,
    }
