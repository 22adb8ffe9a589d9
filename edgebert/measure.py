"""Runs a model on labelled texts and records what it answered and what that cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert import registry
from edgebert.data import Example, texts_of
from edgebert.errors import EdgeBertError
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.statistics import mean_interval


@dataclass(frozen=True, eq=False)
class Measured:
    """What a model did with labelled texts; every array has one entry per text.

    Attributes:
        correct: Whether the label was right, bool.
        predictions: The label's number, int64.
        exit_layer: The layer after which the text stopped, int64.
        macs: Multiply-accumulates spent, float64.
        row: The result row.
    """

    correct: NDArray[np.bool_]
    predictions: NDArray[np.int64]
    exit_layer: NDArray[np.int64]
    macs: NDArray[np.float64]
    row: dict[str, Any]


def measure(
    model: EdgeModel,
    examples: Sequence[Example],
    batch_size: int = 32,
    max_length: int | None = None,
    reporter: Reporter | None = None,
    *,
    name: str = "",
    policy: str = "",
) -> Measured:
    """Runs a model, as it is set, on labelled texts.

    Args:
        model: The model.
        examples: Labelled texts.
        batch_size: Most texts in a batch; at 1 every text is timed on its own.
        max_length: Cut texts to this many tokens.
        reporter: Where progress goes.
        name: What the row calls the bundle.
        policy: What the row calls the policy.

    Raises:
        DataError: A label is not one of the model's.
    """
    manifest = model.manifest
    task = registry.load("edgebert.tasks", manifest.task)
    targets = task.encode_labels(examples, manifest.labels, where=name or str(model.bundle.path))
    texts = texts_of(examples)
    start = time.perf_counter()
    encoded = model.encode(texts, max_length=max_length)
    tokenize_ms = (time.perf_counter() - start) * 1000 / len(texts)
    model.run_encoded(encoded[:batch_size], batch_size=batch_size)
    size = 1 if batch_size == 1 else len(encoded)
    outcomes, seconds = [], []
    with (reporter or Reporter()).track(f"{name} {policy}", len(encoded)) as advance:
        for first in range(0, len(encoded), size):
            start = time.perf_counter()
            outcomes.append(model.run_encoded(encoded[first : first + size], batch_size=batch_size))
            seconds.append(time.perf_counter() - start)
            advance(len(encoded[first : first + size]), "")
    scores = np.concatenate([outcome.scores for outcome in outcomes])
    exit_layer = np.concatenate([outcome.exit_layer for outcome in outcomes])
    path = np.concatenate([outcome.path for outcome in outcomes])
    layers_run = path.sum(axis=1)
    macs = np.concatenate([outcome.macs for outcome in outcomes])
    executed = sum(model.layer_rows(outcome.calls) for outcome in outcomes)
    if model.compact and executed != int(layers_run.sum()):
        raise EdgeBertError(f"{name}: claims {int(layers_run.sum())} layers, ran {executed}: a bug of the engine.")
    predictions = scores.argmax(axis=1).astype(np.int64)
    correct = predictions == targets
    metrics = task.metrics(predictions, targets, len(manifest.labels))
    interval = mean_interval(correct)
    lengths = np.array([len(row.ids) for row in encoded])
    row = {
        "bundle": name or str(model.bundle.path),
        "method": manifest.method,
        "policy": policy or model.policy.policy,
        "rule": model.policy.policy,
        "knobs": dict(model.policy.knobs),
        "precision": manifest.precision,
        "provider": model.provider,
        "threads": model.threads,
        "batch": batch_size,
        "max_length": max_length or manifest.encoder.max_length,
        "seed": manifest.provenance.seed,
        "n": len(examples),
        "n_correct": int(correct.sum()),
        "n_truncated": sum(row.truncated for row in encoded),
        "metric_name": task.METRIC,
        "metric": metrics[task.METRIC],
        "ci_low": interval.low,
        "ci_high": interval.high,
        **{key: value for key, value in metrics.items() if key != task.METRIC},
        "mean_layers": float(layers_run.mean()),
        "layers": manifest.encoder.layers,
        "mean_tokens": float(lengths.mean()),
        "flops_ratio": float(macs.sum() / model.full_macs(lengths).sum()),
        "gmacs": float(macs.mean() / 1e9),
        "exit_histogram": _histogram(exit_layer, correct, manifest.encoder.layers),
        **_paths(path),
        "tokenize_ms": tokenize_ms,
        **_latency(seconds, len(encoded), batch_size),
        "size_mb": model.bundle.size_bytes / 1e6,
    }
    return Measured(correct, predictions, exit_layer, macs, row)


def _latency(seconds: Sequence[float], texts: int, batch_size: int) -> dict[str, float]:
    """Returns times in ms per text; percentiles only where each text was timed on its own."""
    total = sum(seconds)
    row = {"mean_ms": total * 1000 / texts, "texts_per_s": texts / total}
    if batch_size == 1:
        for percent in (50, 90, 99):
            row[f"p{percent}_ms"] = float(np.percentile(seconds, percent) * 1000)
    return row


def _paths(path: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns how many different paths were taken, their entropy, and each layer's share of the texts."""
    counts = np.unique(path, axis=0, return_counts=True)[1]
    shares = counts / counts.sum()
    return {
        "n_paths": len(counts),
        "path_entropy_bits": float(-(shares * np.log2(shares)).sum()) + 0.0,
        "layer_share": path.mean(axis=0).tolist(),
    }


def _histogram(exit_layer: NDArray[np.int64], correct: NDArray[np.bool_], layers: int) -> dict[str, list[int]]:
    """Returns how many texts left after each layer, right and wrong ones apart."""
    return {
        "right": np.bincount(exit_layer[correct], minlength=layers + 1)[1:].tolist(),
        "wrong": np.bincount(exit_layer[~correct], minlength=layers + 1)[1:].tolist(),
    }
