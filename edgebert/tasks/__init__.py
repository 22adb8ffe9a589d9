"""Tasks: what the texts' labels are, what a model's scores mean, and how good answers are; one per file, no torch.

The file name is the task's name, and the file defines what `Task` lists. Nobody else knows what scores mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

from numpy.typing import NDArray

from edgebert import registry
from edgebert.data import Example


class Task(Protocol):
    """What a task's file defines. Scores are what a model gives, float [texts, outputs], an output for each label.

    Attributes:
        METRIC: The metric that decides, one of those in `metrics`; higher is better.
        PROBLEM_TYPE: What Hugging Face calls the task in a sequence classifier's `config.json`.
        LABEL_KIND: What the label column holds: names of classes or numbers.
        HAS_PROBABILITIES: Whether `values` are the labels' probabilities.
        per_text: Gives each text's part in METRIC, whose mean METRIC is, from predictions and targets, [texts]; bool
            where an answer is right or wrong. None: METRIC is not a mean over texts.
    """

    METRIC: str
    PROBLEM_TYPE: str
    LABEL_KIND: Literal["class", "number"]
    HAS_PROBABILITIES: bool
    per_text: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None

    def label_names(self, examples: Sequence[Example], *, column: str | None = None) -> tuple[str, ...]:
        """Returns the names of the model's outputs, from the training examples and the name of their label column."""

    def check_labels(self, labels: Sequence[str], *, where: str) -> None:
        """Refuses names that a model of this task cannot have."""

    def encode_targets(self, examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[Any]:
        """Returns what the model should answer to each example, [examples]."""

    def values(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Returns the scores as a user reads them, float64 [texts, outputs]."""

    def answer(self, values: NDArray[Any], labels: Sequence[str]) -> tuple[str, float]:
        """Returns the label and the score of one text, from its row of `values`."""

    def predictions(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Returns what the model answers, like the targets, [texts]."""

    def metric(self, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
        """Returns METRIC alone."""

    def metrics(self, predictions: NDArray[Any], targets: NDArray[Any], n_labels: int) -> dict[str, float]:
        """Returns METRIC and the other metrics worth knowing, by name."""

    def agreement(self, predictions: NDArray[Any], reference: NDArray[Any]) -> float:
        """Returns the share of texts, 0 to 1, that two models or policies answer alike."""


def load_task(name: str) -> Task:
    """Imports one task.

    Raises:
        ConfigError: No such task; the message names the nearest.
    """
    return cast(Task, registry.load("edgebert.tasks", name))
