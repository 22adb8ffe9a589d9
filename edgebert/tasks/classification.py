"""Single-sentence and sentence-pair classification: its labels and its metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example
from edgebert.errors import DataError, require

METRIC = "accuracy"


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the different labels in the order of their numbers in the model.

    They are sorted as numbers when all of them are whole numbers, else as text.

    Raises:
        DataError: There are fewer than two different labels.
    """
    labels = {example.label for example in examples if example.label is not None}
    if len(labels) < 2:
        raise DataError(
            f"labels: expected at least 2 different ones in {len(examples)} examples, got "
            f"{', '.join(map(repr, labels)) or 'none'}; check the label column and the split."
        )
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def encode_labels(examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[np.int64]:
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
            raise DataError(
                f"{where}: example {number}: expected one of the model's labels {', '.join(labels)}, "
                f"got {got}; correct it, or train a model with it."
            )
    return np.array([indices[example.label] for example in examples if example.label is not None], dtype=np.int64)


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
        "accuracy": float(np.mean(predictions == targets)),
        "f1": float(scores.f1_score(targets, predictions, labels=f1_labels, average="macro", zero_division=0)),
        "mcc": 0.0 if is_constant else float(scores.matthews_corrcoef(targets, predictions)),
    }
