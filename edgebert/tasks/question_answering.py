"""Extractive question answering: the words of a passage that answer a question, as in SQuAD v1.1.

Devlin et al., 2019 (https://arxiv.org/abs/1810.04805), section 4.2: two logits for every token, of beginning and of
ending the answer. A passage that is too long takes several windows that overlap; the answer is the best span over all
of them. A window in which the answer is not to be found learns the first token, as in the reference code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.data import Example
from edgebert.errors import ConfigError, DataError
from edgebert.questions import Question, read_question, read_questions
from edgebert.tasks import Asked, Candidate
from edgebert.tasks._spans import best_spans, target_of
from edgebert.tasks._squad import best, exact_match, f1
from edgebert.text import Encoded, Text, TextEncoder, Window

METRIC = "f1"
ASKED: Asked = "questions"
CALL = 'model.answer("a question", "its passage")'
ARGUMENTS = '--question "a question" --context "its passage"'
PIPELINE_TAG = "question-answering"
AUTO_MODEL = "AutoModelForQuestionAnswering"
PROBLEM_TYPE = None
LABELS = ("start", "end")
PER_TOKEN = True
HAS_PROBABILITIES = True


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a passage falls into windows and which spans may be an answer; all in tokens.

    Attributes:
        overlap_tokens: How many tokens of the passage neighbouring windows share. An answer no longer than that is
            whole in one of them.
        max_question_tokens: Longer questions are cut.
        max_answer_tokens: The longest answer.
    """

    overlap_tokens: int = 128
    max_question_tokens: int = 64
    max_answer_tokens: int = 30

    def __post_init__(self) -> None:
        if self.overlap_tokens < 0:
            raise ValueError(f"overlap_tokens: expected 0 or more, got {self.overlap_tokens}")
        for name in ("max_question_tokens", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


def read(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    require_labels: bool = True,
) -> list[Question]:
    """Reads questions over passages; see `read_questions`.

    Raises:
        ConfigError: Columns are given: the files of questions are no tables.
    """
    if columns:
        raise ConfigError("columns: questions are read from SQuAD's JSON, which has none; leave them out.")
    return read_questions(source, split=split, require_answers=require_labels)


def read_line(line: str, *, where: str) -> Text:
    """Returns question and passage of a JSON line {"question", "context"}."""
    return read_question(line, where=where)


def groups(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Returns the number of each question's passage, int64 [questions]."""
    return np.array([question.passage for question in _questions(examples)], np.int64)


def label_names(examples: Sequence[Example], *, column: str | None = None) -> tuple[str, ...]:
    """Returns the names of the two outputs of a token."""
    return LABELS


def check_labels(labels: Sequence[str], *, where: str) -> None:
    """Refuses anything but the names of the two outputs.

    Raises:
        ConfigError: They are others.
    """
    if tuple(labels) != LABELS:
        raise ConfigError(f"{where}: expected {', '.join(LABELS)}, got {', '.join(labels) or 'none'}; leave it out.")


def encode(
    texts: Sequence[Text], text: TextEncoder, settings: Config, *, max_length: int | None = None, first: int = 0
) -> list[Window]:
    """Returns the windows of questions, given as pairs with their passages; see `TextEncoder.encode_windows`."""
    return text.encode_windows(
        cast("Sequence[tuple[str, str]]", texts),
        **msgspec.structs.asdict(settings),
        max_length=max_length,
        first=first,
    )


def encode_targets(examples: Sequence[Example], labels: Sequence[str], *, where: str) -> NDArray[Any]:
    """Returns the texts of the answers that count as right, tuples of str, object [questions].

    Raises:
        DataError: A question has none; names the first such one, counted from 1.
    """
    targets = np.empty(len(examples), object)
    for number, question in enumerate(_questions(examples)):
        if not question.answers:
            raise DataError(
                f"{where}: example {number + 1}: expected an answer to the question, got none; leave it out."
            )
        targets[number] = tuple(gold.text for gold in question.answers)
    return targets


def row_targets(examples: Sequence[Example], rows: Sequence[Encoded], targets: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the first and the last token of each window's answer, int64 [windows, 2]; see `target_of`."""
    questions = _questions(examples)
    golds = [questions[row.text].answers[0] for row in rows]
    found = [
        target_of(window, gold.start, gold.start + len(gold.text))
        for window, gold in zip(_windows(rows), golds, strict=True)
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def values(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the probabilities of beginning and of ending with each token, float64 [windows, tokens, 2]."""
    shifted = np.exp(np.asarray(scores, np.float64) - np.max(scores, axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def ranked(scores: NDArray[Any], rows: Sequence[Encoded], labels: Sequence[str], top_k: int) -> list[list[Candidate]]:
    """Returns each question's best answers over all its windows; see `best_spans`."""
    by_question = groupby(zip(_windows(rows), scores, strict=True), key=lambda pair: pair[0].text)
    return [
        best_spans([score for _, score in pairs], [window for window, _ in pairs], top_k)
        for pairs in (list(group) for _, group in by_question)
    ]


def predictions(scores: NDArray[Any], rows: Sequence[Encoded]) -> NDArray[Any]:
    """Returns the text of the best answer to each question, str, object [questions]."""
    return np.array([best_ones[0].text for best_ones in ranked(scores, rows, LABELS, 1)], object)


def per_text(predictions: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the F1 of each answer, 0 to 1, float64 [questions]."""
    return np.array([best(f1, answer, golds) for answer, golds in zip(predictions, targets, strict=True)], np.float64)


def metric(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Returns the mean F1, 0 to 1."""
    return float(per_text(predictions, targets).mean())


def metrics(predictions: NDArray[Any], targets: NDArray[Any], n_labels: int = 2) -> dict[str, float]:
    """Returns the mean F1 and the share of exact matches, 0 to 1.

    Args:
        predictions: The answers, str [questions].
        targets: The answers that count as right, tuples of str [questions].
        n_labels: How many outputs a token has; always two.

    Raises:
        DataError: There is no question, or the two lengths differ.
    """
    if predictions.shape != targets.shape or not targets.size:
        raise DataError(
            f"metrics: expected one answer for each of at least 1 question, got {predictions.size} answers for "
            f"{targets.size} questions; answer every question once."
        )
    matches = [best(exact_match, answer, golds) for answer, golds in zip(predictions, targets, strict=True)]
    return {"f1": metric(predictions, targets), "exact_match": float(np.mean(matches))}


def agreement(predictions: NDArray[Any], reference: NDArray[Any]) -> float:
    """Returns how often two models give the same words, 0 to 1."""
    return float(np.mean(predictions == reference))


def _questions(examples: Sequence[Example]) -> Sequence[Question]:
    return cast("Sequence[Question]", examples)


def _windows(rows: Sequence[Encoded]) -> Sequence[Window]:
    return cast("Sequence[Window]", rows)
