"""Single-sentence and sentence-pair classification: its labels and its metrics."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example, read_examples
from edgebert.errors import ConfigError, DataError, require
from edgebert.tasks import Asked, Candidate, _texts
from edgebert.text import Encoded

METRIC = "accuracy"
ASKED: Asked = "texts"
CALL, ARGUMENTS = _texts.CALL, _texts.ARGUMENTS
PIPELINE_TAG, AUTO_MODEL = _texts.PIPELINE_TAG, _texts.AUTO_MODEL
PROBLEM_TYPE = "single_label_classification"
LABELS = None
PER_TOKEN = False
HAS_PROBABILITIES = True

Config = _texts.Config
read_line, groups, encode, row_targets = _texts.read_line, _texts.groups, _texts.encode, _texts.row_targets


def read(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    require_labels: bool = True,
) -> list[Example]:
    """Reads a table of texts with the names of their classes; see `read_examples`."""
    return read_examples(source, split=split, columns=columns, require_labels=require_labels, label_kind="class")


def label_names(examples: Sequence[Example], *, column: str | None = None) -> tuple[str, ...]:
    """Returns the different labels in the order of their numbers in the model.

    They are sorted as numbers when all of them are whole numbers, else as text.

    Args:
        examples: Labelled examples.
        column: The name of their label column; it means nothing here.

    Raises:
        DataError: There are fewer than two different labels.
    """
    labels = {example.label for example in examples if example.label is not None}
    if len(labels) < 2:
        raise DataError(
            f"labels: expected at least 2 different ones in {len(examples)} examples, got "
            f"{', '.join(map(repr, labels)) or 'none'}; check the label column and the split."
        )
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def check_labels(labels: Sequence[str], *, where: str) -> None:
    """Refuses fewer than two labels.

    Raises:
        ConfigError: There are fewer.
    """
    if len(labels) < 2:
        got = ", ".join(map(repr, labels)) or "none"
        raise ConfigError(f"{where}: expected at least 2 labels to choose between, got {got}.")


def encode_targets(examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """Returns each example's label as its index in `labels`, int64 [examples].

    Args:
        examples: Labelled examples.
        labels: The labels the model knows, in its order.
        where: The examples' source, for messages.

    Raises:
        DataError: A label is missing or is none of `labels`; names the first such example, counted from 1.
    """
    indices = {label: index for index, label in enumerate(labels)}
    for number, example in enumerate(examples, start=1):
        if example.label not in indices:
            got = "no label" if example.label is None else repr(example.label)
            near = _near(example.label or "", labels)
            raise DataError(
                f"{where}: example {number}: expected one of the model's labels {_some(labels)}, got {got}; "
                f"correct it, or train a model with it.{near}"
            )
    return np.array([indices[example.label] for example in examples if example.label is not None], dtype=np.int64)


def _some(labels: Sequence[str], most: int = 8) -> str:
    left = len(labels) - most
    return f"{', '.join(labels[:most])} and {left} more" if left > 0 else ", ".join(labels)


def _near(label: str, labels: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, labels, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Returns probabilities, float64 [texts, labels]; log-probabilities come back as they were."""
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def values(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the labels' probabilities, float64 [texts, labels]."""
    return softmax(scores)


def ranked(scores: NDArray[Any], rows: Sequence[Encoded], labels: Sequence[str], top_k: int) -> list[list[Candidate]]:
    """Returns each text's most probable labels, the first of equals first."""
    probabilities = values(scores)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [Candidate(labels[label], float(row[label])) for label in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def predictions(scores: NDArray[Any], rows: Sequence[Encoded] = ()) -> NDArray[np.int64]:
    """Returns the most probable labels' numbers, int64 [texts]."""
    best: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
    return best


def per_text(predictions: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Says which labels are right, bool [texts]."""
    right: NDArray[np.bool_] = predictions == targets
    return right


def metric(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Returns the accuracy, 0 to 1."""
    return float(np.mean(predictions == targets))


def agreement(predictions: NDArray[Any], reference: NDArray[Any]) -> float:
    """Returns how often two models give the same label, 0 to 1."""
    return float(np.mean(predictions == reference))


def metrics(predictions: NDArray[np.int64], targets: NDArray[np.int64], n_labels: int) -> dict[str, float]:
    """Returns accuracy and F1 (0 to 1) and Matthews' correlation coefficient (-1 to 1).

    F1 is that of label 1 when there are two labels, else the mean of the labels that occur. What is not
    defined, such as F1 without any positive, is 0.

    Args:
        predictions: Predicted label indices, int64 [examples].
        targets: True label indices, int64 [examples].
        n_labels: How many labels the model knows.

    Raises:
        DataError: There is no example, or the two lengths differ.
        MissingExtraError: scikit-learn is not installed.
    """
    if predictions.shape != targets.shape or not targets.size:
        raise DataError(
            f"metrics: expected one prediction for each of at least 1 target, got {predictions.size} "
            f"predictions for {targets.size} targets; predict every example once."
        )
    scores = require("sklearn.metrics", extra="eval", purpose="scoring predictions")
    f1_labels = [1] if n_labels == 2 else np.union1d(predictions, targets)
    # Fewer than two labels in both leave the coefficient undefined.
    is_constant = np.union1d(predictions, targets).size < 2
    return {
        "accuracy": metric(predictions, targets),
        "f1": float(scores.f1_score(targets, predictions, labels=f1_labels, average="macro", zero_division=0)),
        "mcc": 0.0 if is_constant else float(scores.matthews_corrcoef(targets, predictions)),
    }
