"""EdgeModel: a bundle that answers texts and questions."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edgebert.arguments import check_count, items_of
from edgebert.errors import ConfigError, DataError
from edgebert.policies import Policy
from edgebert.runtime.forks import Origin
from edgebert.runtime.program import Program
from edgebert.runtime.results import Answer, Cost, Prediction, answer_of, costs_of, prediction_of
from edgebert.tasks import Asked, Candidate
from edgebert.text import Encoded, Text, is_pair, texts_in

_T = TypeVar("_T")

_RESULTS: dict[Asked, Callable[..., Prediction | Answer]] = {"texts": prediction_of, "questions": answer_of}


class EdgeModel(Program):
    """A bundle, loaded and ready to answer.

    Safe to use from several threads, which share the policy. In a fork of its process it is refused unless it was
    opened with `threads=1`; a worker that was spawned, or that gets its work pickled, opens the path for itself.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self,
        texts: Text,
        *,
        top_k: int | None = ...,
        batch_size: int = ...,
        max_length: int | None = ...,
        show_progress: bool = ...,
    ) -> Prediction: ...
    @overload
    def __call__(
        self,
        texts: Sequence[Text],
        *,
        top_k: int | None = ...,
        batch_size: int = ...,
        max_length: int | None = ...,
        show_progress: bool = ...,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        texts: Text | Sequence[Text],
        *,
        top_k: int | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Prediction | list[Prediction]:
        """Answers texts, or pairs of texts as tuples, in the order given.

        Args:
            texts: A text, a pair, or a sequence of them.
            top_k: Also give this many most probable labels.
            batch_size: Most texts in a batch.
            max_length: Cut texts to this many tokens; None is the model's own limit.
            show_progress: Show a progress bar on stderr.

        Raises:
            ConfigError: `top_k` where the task has no label probabilities, or the model answers questions.
            DataError: A text is not a text.
            EdgeBertError: The bundle has no tokenizer, or the model is closed.
        """
        self.check_asked("texts")
        if isinstance(texts, str) or is_pair(texts):
            return self._predict([texts], top_k, batch_size, max_length)[0]
        return self._predict(texts, top_k, batch_size, max_length, show_progress=show_progress)

    @overload
    def answer(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self,
        question: str,
        context: str,
        *,
        top_k: int = ...,
        batch_size: int = ...,
        max_length: int | None = ...,
        show_progress: bool = ...,
    ) -> Answer: ...
    @overload
    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        *,
        top_k: int = ...,
        batch_size: int = ...,
        max_length: int | None = ...,
        show_progress: bool = ...,
    ) -> list[Answer]: ...

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        *,
        top_k: int = 1,
        batch_size: int = 32,
        max_length: int | None = None,
        show_progress: bool = False,
    ) -> Answer | list[Answer]:
        """Answers questions with words of their passages, in the order given.

        Args:
            question: A question, or a list of them.
            context: The passage of a question, or a list of as many; one passage may serve a list of questions.
            top_k: With more than 1, also give this many best answers of different texts.
            batch_size: Most windows in a batch; a long passage takes several.
            max_length: Tokens of a window; None is the model's own limit.
            show_progress: Show a progress bar on stderr.

        Raises:
            ConfigError: The model does not answer questions, or `top_k` is less than 1.
            DataError: There are not as many passages as questions, or one of them is not a text.
            EdgeBertError: The bundle has no tokenizer, or the model is closed.
        """
        self.check_asked("questions")
        top_k = check_count("top_k", top_k)
        questions = [question] if isinstance(question, str) else list(items_of("question", question))
        contexts = [context] * len(questions) if isinstance(context, str) else list(items_of("context", context))
        if isinstance(question, str) and not isinstance(context, str):
            raise DataError("context: expected one text for one question, got a list; give a list of questions too.")
        if len(questions) != len(contexts):
            raise DataError(f"answer: expected a passage for each of {len(questions)} questions, got {len(contexts)}.")
        pairs = list(zip(questions, contexts, strict=True))
        answers = [
            answer_of(candidates, cost, with_top=top_k > 1)
            for candidates, cost in self._rank(pairs, top_k, batch_size, max_length, show_progress=show_progress)
        ]
        return answers[0] if isinstance(question, str) else answers

    def stream(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        window: int = 1024,
    ) -> Iterator[Prediction | Answer]:
        """Answers an iterable of any length in bounded memory, in order.

        While one window is answered, the next has been read and is being tokenized; with a window of 1 nothing is read
        ahead. The policy is the one in use when the first answer is asked for. What the iterable raises comes after the
        answers to all that it gave before.

        Args:
            texts: Texts or pairs; of a model that answers questions, pairs of a question and its passage.
            top_k: Also give this many best answers.
            batch_size: Most texts in a batch.
            max_length: Cut texts to this many tokens.
            window: How many texts are sorted by length together.

        Raises:
            EdgeBertError: It is continued in a fork of the process it began in, which has not its threads.
        """
        window = min(check_count("window", window), sys.maxsize)
        self._check_top_k(top_k)
        result = _RESULTS[self._task.ASKED]
        policy, _ = self._rule
        origin = Origin(has_threads=window > 1)
        for rows in self._tokenized(texts, window, max_length):
            for candidates, cost in self._ranked(rows, policy, top_k, batch_size):
                yield result(candidates, cost, with_top=top_k is not None)
                origin.check(f"{self.bundle.path}: a stream", cure="begin it here, or give it a window of 1.")

    def _tokenized(self, texts: Iterable[Text], window: int, max_length: int | None) -> Iterator[Sequence[Encoded]]:
        """Gives the rows of one window of texts after the other, the next of them being made meanwhile."""
        windows = zip(_windows(texts_in(texts), window), itertools.count(0, window), strict=False)
        if window == 1:
            yield from (self.encode(texts, max_length=max_length, first=first) for texts, first in windows)
            return
        with ThreadPoolExecutor(1, "edgebert-tokenize") as worker:
            submitted = (worker.submit(self.encode, t, max_length=max_length, first=first) for t, first in windows)
            for rows in _one_ahead(submitted):
                yield rows.result()

    def predict(
        self, texts: Sequence[Text], *, batch_size: int = 32, max_length: int | None = None
    ) -> list[str] | list[float]:
        """Returns the most probable label of each text; of a regression model, its value."""
        self.check_asked("texts")
        answers = self._predict(texts, None, batch_size, max_length)
        if self._task.HAS_PROBABILITIES:
            return [answer.label for answer in answers]
        return [answer.score for answer in answers]

    def predict_proba(
        self, texts: Sequence[Text], *, batch_size: int = 32, max_length: int | None = None
    ) -> NDArray[np.float64]:
        """Returns probabilities, float64 [texts, labels].

        Raises:
            ConfigError: The task has none.
        """
        self.check_asked("texts")
        if not self._task.HAS_PROBABILITIES:
            raise ConfigError(f"predict_proba: {self.manifest.task} has no label probabilities; use predict.")
        encoded = self.encode(texts, max_length=max_length)
        return self._task.values(self.run_encoded(encoded, batch_size=batch_size).scores)

    def check_asked(self, asked: Asked) -> None:
        """Refuses what the model is not made to answer.

        Raises:
            ConfigError: It answers texts, and is asked questions, or the other way round.
        """
        if asked != self._task.ASKED:
            raise ConfigError(
                f"{self.bundle.path}: {self.manifest.task} answers {self._task.ASKED}, and was given {asked}; "
                f"use {self._task.CALL}, or edgebert run BUNDLE {self._task.ARGUMENTS}."
            )

    def _predict(
        self,
        texts: Sequence[Any],
        top_k: int | None,
        batch_size: int,
        max_length: int | None,
        *,
        show_progress: bool = False,
    ) -> list[Prediction]:
        ranked = self._rank(texts, top_k, batch_size, max_length, show_progress=show_progress)
        return [prediction_of(candidates, cost, with_top=top_k is not None) for candidates, cost in ranked]

    def _rank(
        self,
        texts: Sequence[Any],
        top_k: int | None,
        batch_size: int,
        max_length: int | None,
        *,
        show_progress: bool = False,
    ) -> list[tuple[list[Candidate], Cost]]:
        """Returns the best answers of each text, and what it cost."""
        self._check_top_k(top_k)
        policy, _ = self._rule
        rows = self.encode(texts, max_length=max_length)
        return self._ranked(rows, policy, top_k, batch_size, show_progress=show_progress)

    def _check_top_k(self, top_k: int | None) -> None:
        if top_k is not None:
            check_count("top_k", top_k)
        if top_k is not None and not self._task.HAS_PROBABILITIES:
            raise ConfigError(f"top_k: {self.manifest.task} has no label probabilities to rank; leave it out.")

    def _ranked(
        self,
        rows: Sequence[Encoded],
        policy: Policy,
        top_k: int | None,
        batch_size: int,
        *,
        show_progress: bool = False,
    ) -> list[tuple[list[Candidate], Cost]]:
        outcome = self._run_rows(rows, policy, batch_size=batch_size, sort=True, show_progress=show_progress)
        ranked = self._task.ranked(outcome.scores, rows, self.labels, top_k or 1)
        full = self.full_macs([len(row.ids) for row in rows])
        costs = costs_of(rows, outcome.path, outcome.exit_layer, outcome.macs, full, outcome.layer_tokens)
        return list(zip(ranked, costs, strict=True))


def _windows(texts: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Gives lists of so many texts, the last one of what is left; what the source raises comes after that one."""
    window: list[_T] = []
    try:
        for text in texts:
            window.append(text)
            if len(window) == size:
                yield window
                window = []
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window


def _one_ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Gives what a source gives, each when the next one is there too; what it raises comes after all of them."""
    waiting: list[_T] = []
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > 1:
                yield waiting.pop(0)
    except Exception:
        yield from waiting
        raise
    yield from waiting
