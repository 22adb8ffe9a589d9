"""Tasks: how examples become rows, what the model should answer, what its scores mean, and how good answers are.

One task per file, no torch. The file name is the task's name, and the file defines what `Task` lists. Nobody else knows
what scores mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import msgspec
from numpy.typing import NDArray

from edgebert import registry
from edgebert.config import decode
from edgebert.data import Example
from edgebert.text import Encoded, Text, TextEncoder

Asked = Literal["texts", "questions"]
"""What a user gives: texts (or pairs of texts), or questions with a passage each."""


class Candidate(NamedTuple):
    """A possible answer to one text.

    Attributes:
        text: A label, or the words of a passage.
        score: Its probability, 0 to 1; of a regression, the value.
        start: Its first character in the passage; 0 for a label.
        end: The character after its last; 0 for a label.
    """

    text: str
    score: float
    start: int = 0
    end: int = 0


class Task(Protocol):
    """What a task's file defines.

    A text becomes one row or several. Scores are what a model gives for rows: float [rows, outputs], an output for each
    label, or float [rows, tokens, outputs] where every token has them. Rows of a list come in the order of their texts.

    Attributes:
        METRIC: The metric that decides, one of those in `metrics`; higher is better.
        ASKED: What a user gives.
        CALL: How it is given in Python, as an example.
        ARGUMENTS: How it is given to `edgebert run BUNDLE`, as an example.
        PIPELINE_TAG: What the hub calls the task.
        AUTO_MODEL: The class of `transformers` that opens a static model of the task.
        PROBLEM_TYPE: What Hugging Face calls the task in `config.json`; None: nothing.
        LABELS: The names of the model's outputs, where the data has no say in them.
        PER_TOKEN: Whether every token has scores.
        HAS_PROBABILITIES: Whether `values` are probabilities.
        Config: The task's settings, a struct: how rows are made and read.
        per_text: Gives each text's part in METRIC, whose mean METRIC is, from predictions and targets, [texts]; bool
            where an answer is right or wrong. None: METRIC is not a mean over texts.
    """

    METRIC: str
    ASKED: Asked
    CALL: str
    ARGUMENTS: str
    PIPELINE_TAG: str
    AUTO_MODEL: str
    PROBLEM_TYPE: str | None
    LABELS: tuple[str, ...] | None
    PER_TOKEN: bool
    HAS_PROBABILITIES: bool
    Config: type[msgspec.Struct]
    per_text: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None

    def read(
        self,
        source: str | Path,
        *,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        require_labels: bool = True,
    ) -> Sequence[Example]:
        """Reads the examples of a source, in its order; `columns` says which column of a table is which field."""

    def read_line(self, line: str, *, where: str) -> Text:
        """Returns the text, or question and passage, of one line of an input without labels."""

    def groups(self, examples: Sequence[Example]) -> NDArray[Any]:
        """Returns numbers, [examples], that are the same where examples must not be held out apart."""

    def label_names(self, examples: Sequence[Example], *, column: str | None = None) -> tuple[str, ...]:
        """Returns the names of the model's outputs, from the training examples and the name of their label column."""

    def check_labels(self, labels: Sequence[str], *, where: str) -> None:
        """Refuses names that a model of this task cannot have."""

    def encode(
        self, texts: Sequence[Text], text: TextEncoder, settings: Any, *, max_length: int | None = None, first: int = 0
    ) -> Sequence[Encoded]:
        """Returns the rows of texts; `settings` is a `Config`, `first` the number of the first text, for messages."""

    def encode_targets(self, examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[Any]:
        """Returns what the model should answer to each example, [examples], as METRIC wants it."""

    def row_targets(self, examples: Sequence[Example], rows: Sequence[Encoded], targets: NDArray[Any]) -> NDArray[Any]:
        """Returns what a loss compares the scores of each row with, [rows, ...], of rows and targets of examples."""

    def values(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Returns the scores as probabilities or plain values, float64, of the same shape."""

    def ranked(
        self, scores: NDArray[Any], rows: Sequence[Encoded], labels: Sequence[str], top_k: int
    ) -> list[list[Candidate]]:
        """Returns each text's best answers, the best first; at least one, at most `top_k`."""

    def predictions(self, scores: NDArray[Any], rows: Sequence[Encoded]) -> NDArray[Any]:
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


def task_settings(task: Task, tree: Mapping[str, Any], *, where: str, prefix: str = "") -> msgspec.Struct:
    """Returns a task's settings from plain data.

    Raises:
        ConfigError: A setting is unknown or makes no sense; `where` and `prefix` say where it stands.
    """
    return decode(dict(tree), task.Config, where=where, prefix=prefix)
