"""Runs a model on labelled texts and records what it answered and what that cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Manifest
from edgebert.data import Example, texts_of
from edgebert.errors import EdgeBertError
from edgebert.maps import maps_of
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.outcome import Outcome
from edgebert.statistics import Interval, mean_interval, paired_difference, quantile_curve, resampled_interval
from edgebert.tasks import Task, load_task
from edgebert.text import join_rows


@dataclass(frozen=True, eq=False)
class Measured:
    """What a model did with labelled texts; every array has one entry per text.

    Attributes:
        per_text: Its part in the metric, whose mean the metric is; bool where an answer is right or wrong. None: the
            metric is not a mean over texts.
        predictions: The answer, as the task counts it, such as a label's number.
        targets: What the answer should be.
        exit_layer: The layer after which the text stopped, the deepest if it took several rows, int64.
        macs: Multiply-accumulates spent, float64.
        row: The result row.
    """

    per_text: NDArray[Any] | None
    predictions: NDArray[Any]
    targets: NDArray[Any]
    exit_layer: NDArray[np.int64]
    macs: NDArray[np.float64]
    row: dict[str, Any]

    @property
    def correct(self) -> NDArray[np.bool_] | None:
        """Whether the answer is right, bool; None in a task whose answers are not right or wrong."""
        return _right_or_wrong(self.per_text)


def measure(
    model: EdgeModel,
    examples: Sequence[Example],
    batch_size: int = 32,
    max_length: int | None = None,
    reporter: Reporter | None = None,
    *,
    name: str = "",
    policy: str = "",
    maps: int = 0,
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
        maps: Let the row say what ran on this many of the first rows; see `edgebert.maps`.

    Raises:
        DataError: A label is not one that the model can answer.
    """
    manifest = model.manifest
    task = load_task(manifest.task)
    targets = task.encode_targets(examples, manifest.labels, where=name or str(model.bundle.path))
    texts = texts_of(examples)
    start = time.perf_counter()
    encoded = model.encode(texts, max_length=max_length)
    tokenize_ms = (time.perf_counter() - start) * 1000 / len(texts)
    text_of_row = np.array([row.text for row in encoded])
    model.run_encoded(encoded[:batch_size], batch_size=batch_size)
    parts = _parts(text_of_row, batch_size)
    outcomes, seconds = [], []
    with (reporter or Reporter()).track(f"{name} {policy}", len(encoded)) as advance:
        for places in parts:
            rows = [encoded[place] for place in places]
            start = time.perf_counter()
            outcomes.append(model.run_encoded(rows, batch_size=batch_size))
            seconds.append(time.perf_counter() - start)
            advance(len(rows), "")
    scores = join_rows([(places, o.scores) for places, o in zip(parts, outcomes, strict=True)], len(encoded))
    exit_layer = np.zeros(len(texts), np.int64)
    np.maximum.at(exit_layer, text_of_row, np.concatenate([outcome.exit_layer for outcome in outcomes]))
    path = np.concatenate([outcome.path for outcome in outcomes])
    layers_run = path.sum(axis=1)
    macs = np.concatenate([outcome.macs for outcome in outcomes])
    linear_macs = np.concatenate([outcome.linear_macs for outcome in outcomes])
    executed = sum(model.layer_rows(outcome.calls) for outcome in outcomes)
    predicted = sum(model.predictor_rows(outcome.calls) for outcome in outcomes)
    if model.compact and executed != int(layers_run.sum()):
        raise EdgeBertError(f"{name}: claims {int(layers_run.sum())} layers, ran {executed}: a bug of the engine.")
    predictions = task.predictions(scores, encoded)
    per_text = task.per_text(predictions, targets) if task.per_text else None
    metrics = task.metrics(predictions, targets, len(manifest.labels))
    interval = _interval(task, per_text, predictions, targets)
    correct = _right_or_wrong(per_text)
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
        "max_length": min(max_length or manifest.encoder.max_length, manifest.encoder.max_length),
        "seed": manifest.provenance.seed,
        "n": len(examples),
        **({} if correct is None else {"n_correct": int(correct.sum())}),
        "n_rows": len(encoded),
        "n_truncated": len({row.text for row in encoded if row.truncated}),
        "metric_name": task.METRIC,
        "metric": metrics[task.METRIC],
        "ci_low": interval.low,
        "ci_high": interval.high,
        **{key: value for key, value in metrics.items() if key != task.METRIC},
        "mean_layers": float(layers_run.mean()),
        "layers": manifest.encoder.layers,
        "mean_predictor_calls": predicted / len(examples),
        "mean_tokens": float(lengths.sum() / len(texts)),
        **_layer_tokens(outcomes, len(texts)),
        **_widths(outcomes, manifest),
        "flops_ratio": float(macs.sum() / model.full_macs(lengths).sum()),
        "gmacs": float(macs.sum() / len(texts) / 1e9),
        "gflops_fastbert": float(2 * linear_macs.sum() / len(texts) / 1e9),
        "exit_histogram": _histogram(layers_run, correct, manifest.encoder.layers),
        **_paths(path),
        "tokenize_ms": tokenize_ms,
        **_latency(seconds, len(texts), batch_size),
        **({"maps": maps_of(outcomes, encoded, model, maps)} if maps else {}),
        "size_mb": model.bundle.size_bytes / 1e6,
    }
    text_macs = np.bincount(text_of_row, macs, minlength=len(texts)).astype(np.float64)
    return Measured(per_text, predictions, targets, exit_layer, text_macs, row)


def _parts(text_of_row: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Returns the places of the rows that are timed together: all, or those of one text where each is timed alone."""
    places = np.arange(len(text_of_row))
    return np.split(places, np.flatnonzero(np.diff(text_of_row)) + 1) if batch_size == 1 else [places]


def metric_difference(first: Measured, second: Measured, task: Task) -> Interval:
    """Returns how much higher the first's metric is than the second's on the same texts, with its 95 % interval.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    if first.per_text is not None and second.per_text is not None:
        return paired_difference(first.per_text, second.per_text)

    def difference(texts: NDArray[np.int64]) -> float:
        targets = first.targets[texts]
        return task.metric(first.predictions[texts], targets) - task.metric(second.predictions[texts], targets)

    return resampled_interval(difference, len(first.targets))


def _interval(task: Task, per_text: NDArray[Any] | None, predictions: NDArray[Any], targets: NDArray[Any]) -> Interval:
    """Returns the metric with its 95 % bootstrap interval over texts."""
    if per_text is not None:
        return mean_interval(per_text)
    return resampled_interval(lambda texts: task.metric(predictions[texts], targets[texts]), len(targets))


def _right_or_wrong(per_text: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    return per_text if per_text is not None and per_text.dtype == np.bool_ else None


def _latency(seconds: Sequence[float], texts: int, batch_size: int) -> dict[str, Any]:
    """Returns times in ms per text; percentiles only where each text was timed on its own."""
    total = sum(seconds)
    row: dict[str, Any] = {"mean_ms": total * 1000 / texts, "texts_per_s": texts / total}
    if batch_size == 1:
        for percent in (50, 90, 99):
            row[f"p{percent}_ms"] = float(np.percentile(seconds, percent) * 1000)
        row["latency_quantiles_ms"] = quantile_curve([1000 * second for second in seconds])
    return row


def _layer_tokens(outcomes: Sequence[Outcome], texts: int) -> dict[str, Any]:
    """Returns how many tokens went on from each layer, a mean over texts, and the mean of these over layers.

    Nothing where no token can be dropped.
    """
    counts = [outcome.layer_tokens for outcome in outcomes]
    made = [count for count in counts if count is not None]
    if not made:
        return {}
    by_layer = np.concatenate(made).sum(axis=0) / texts
    return {"mean_layer_tokens": by_layer.tolist(), "mean_kept_tokens": float(by_layer.mean())}


def _widths(outcomes: Sequence[Outcome], manifest: Manifest) -> dict[str, Any]:
    """Returns the share of the pieces that ran, of each kind, and how many neurons are chosen together, if any are."""
    names = {step.choice: step.choices for step in manifest.program if step.kind == "select" and step.choice}
    if not names:
        return {}
    shares = {name: float(np.concatenate([o.chosen[name] for o in outcomes]).mean()) for name in names}
    blocks = names.get("block_choice")
    return {
        "mean_width": sum(shares.values()) / len(shares),
        **{f"mean_{name.removesuffix('_choice')}_share": share for name, share in shares.items()},
        "block_size": None if blocks is None else manifest.encoder.feed_forward_size // blocks,
    }


def _paths(path: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns how many different paths were taken, their entropy, and each layer's share of the texts."""
    counts = np.unique(path, axis=0, return_counts=True)[1]
    shares = counts / counts.sum()
    return {
        "n_paths": len(counts),
        "path_entropy_bits": float(-(shares * np.log2(shares)).sum()) + 0.0,
        "layer_share": path.mean(axis=0).tolist(),
    }


def _histogram(layers_run: NDArray[np.int64], correct: NDArray[np.bool_] | None, layers: int) -> dict[str, list[int]]:
    """Returns how many texts ran each number of layers, right and wrong ones apart where there are such."""
    groups = {"all": layers_run} if correct is None else {"right": layers_run[correct], "wrong": layers_run[~correct]}
    return {name: np.bincount(group, minlength=layers + 1)[1:].tolist() for name, group in groups.items()}
