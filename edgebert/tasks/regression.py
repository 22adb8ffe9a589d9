"""Regression: one number for a text or a pair of texts, such as how alike two sentences are.

The label column holds the numbers; the model's one output is the number itself, and bears the column's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example, read_examples, read_number
from edgebert.errors import ConfigError, DataError, require
from edgebert.tasks import Asked, Candidate, _texts
from edgebert.text import Encoded

METRIC = "pearson"
ASKED: Asked = "texts"
CALL, ARGUMENTS = _texts.CALL, _texts.ARGUMENTS
PIPELINE_TAG, AUTO_MODEL = _texts.PIPELINE_TAG, _texts.AUTO_MODEL
PROBLEM_TYPE = "regression"
LABELS = None
PER_TOKEN = False
HAS_PROBABILITIES = False
DEFAULT_NAME = "score"
AGREEMENT_TOLERANCE = 0.1
"""Two answers agree up to this many standard deviations of the reference's answers, whatever the labels' scale."""

per_text = None
"""A correlation is not a mean over texts."""


Config = _texts.Config
read_line, groups, encode, row_targets = _texts.read_line, _texts.groups, _texts.encode, _texts.row_targets


def read(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    require_labels: bool = True,
) -> list[Example]:
    """Reads a table of texts with numbers; see `read_examples`."""
    return read_examples(source, split=split, columns=columns, require_labels=require_labels, label_kind="number")


def label_names(examples: Sequence[Example], *, column: str | None = None) -> tuple[str, ...]:
    """Returns the one name of the output.

    Args:
        examples: Labelled examples.
        column: The name of their label column, which is the output's; None is `score`.

    Raises:
        DataError: An example has no number, or all have the same.
    """
    targets = encode_targets(examples, (), where="labels")
    if len(np.unique(targets)) < 2:
        got = f"{targets[0]:g} alone" if len(targets) else "none"
        raise DataError(
            f"labels: expected at least 2 different numbers in {len(examples)} examples, got {got}; "
            "check the label column and the split."
        )
    return (column or DEFAULT_NAME,)


def check_labels(labels: Sequence[str], *, where: str) -> None:
    """Refuses anything but one name.

    Raises:
        ConfigError: There are none or several.
    """
    if len(labels) != 1:
        got = ", ".join(map(repr, labels)) or "none"
        raise ConfigError(f"{where}: expected one name for the one value of regression, got {got}.")


def encode_targets(examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[np.float64]:
    """Returns each example's number, float64 [examples].

    Args:
        examples: Labelled examples.
        labels: The name of the output; it does not matter here.
        where: The examples' source, for messages.

    Raises:
        DataError: A label is missing or is not a number; names the first such example, counted from 1.
    """
    numbers = []
    for place, example in enumerate(examples, start=1):
        number = None if example.label is None else read_number(example.label)
        if number is None:
            got = "no label" if example.label is None else repr(example.label)
            raise DataError(f"{where}: example {place}: expected a number, got {got}; correct it or leave it out.")
        numbers.append(number)
    return np.array(numbers, np.float64)


def values(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the numbers as they are, float64 [texts, 1]."""
    return np.asarray(scores, np.float64)


def ranked(scores: NDArray[Any], rows: Sequence[Encoded], labels: Sequence[str], top_k: int) -> list[list[Candidate]]:
    """Returns the output's name and its number for each text, whatever `top_k`."""
    return [[Candidate(labels[0], value)] for value in predictions(scores).tolist()]


def predictions(scores: NDArray[Any], rows: Sequence[Encoded] = ()) -> NDArray[np.float64]:
    """Returns the numbers, float64 [texts]."""
    return np.asarray(scores[:, 0], np.float64)


def metric(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Returns Pearson's correlation, -1 to 1; 0 where either side is constant, which leaves it undefined."""
    if not np.ptp(predictions) or not np.ptp(targets):
        return 0.0
    first, second = predictions - predictions.mean(), targets - targets.mean()
    correlation = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip(correlation, -1.0, 1.0))


def metrics(predictions: NDArray[Any], targets: NDArray[Any], n_labels: int = 1) -> dict[str, float]:
    """Returns Pearson's and Spearman's correlation (-1 to 1, 0 where undefined) and the mean squared error.

    Args:
        predictions: Predicted numbers, float64 [examples].
        targets: True numbers, float64 [examples].
        n_labels: How many outputs the model has; always one.

    Raises:
        DataError: There is no example, or the two lengths differ.
        MissingExtraError: SciPy is not installed.
    """
    if predictions.shape != targets.shape or not targets.size:
        raise DataError(
            f"metrics: expected one prediction for each of at least 1 target, got {predictions.size} "
            f"predictions for {targets.size} targets; predict every example once."
        )
    stats = require("scipy.stats", extra="eval", purpose="scoring predictions")
    return {
        "pearson": metric(predictions, targets),
        "spearman": metric(stats.rankdata(predictions), stats.rankdata(targets)),
        "mse": float(np.mean((predictions - targets) ** 2)),
    }


def agreement(predictions: NDArray[Any], reference: NDArray[Any]) -> float:
    """Returns how often two models give nearly the same number, 0 to 1.

    Nearly: within a tenth of the standard deviation of the reference's numbers.
    """
    return float(np.mean(np.abs(predictions - reference) <= AGREEMENT_TOLERANCE * np.std(reference)))
