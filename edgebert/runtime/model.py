"""EdgeModel: a bundle that answers."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgebert.bundle import CARD_NAME, TOKENIZER_NAME, Bundle
from edgebert.bundle.files import publish
from edgebert.bundle.manifest import MANIFEST_NAME, Macs, Manifest, OperatingPoint, total
from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.policies import Policy, knob_names
from edgebert.runtime.engine import Call, Engine, Outcome
from edgebert.runtime.hub import find_bundle
from edgebert.runtime.inputs import check_ids
from edgebert.runtime.points import find_point, make_point, policy_with
from edgebert.runtime.results import Answer, Cost, Forward, Prediction, answer_of, costs_of, prediction_of
from edgebert.runtime.sessions import Graph, as_input, make_graph
from edgebert.runtime.threads import available_threads
from edgebert.tasks import Asked, Candidate, Task, load_task, task_settings
from edgebert.text import Encoded, Text, TextEncoder, Values, batches, join_rows

MAX_BATCH_TOKENS = 8192
_PLAN_ROWS = 1024  # a plan made ahead is a look-up
_RESULTS: dict[Asked, Callable[..., Prediction | Answer]] = {"texts": prediction_of, "questions": answer_of}


class EdgeModel:
    """A bundle, loaded and ready to answer. Safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        policy: str = "default",
        threads: int | None = None,
        provider: str = "cpu",
        session_options: onnxruntime.SessionOptions | None = None,
        compact: bool = True,
    ) -> None:
        """Loads the graphs of an opened bundle; see `from_pretrained`."""
        if threads is not None and threads < 1:
            raise ConfigError(f"threads: expected 1 or more, got {threads}.")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._task = load_task(self.manifest.task)
        self._settings = task_settings(self._task, self.manifest.task_settings, where=str(bundle.path))
        self.threads = threads or available_threads()
        self.provider = provider
        self.compact = compact
        self._all_layers = _sum_of_layers(self.manifest)
        self._policy, self._point = make_point(self.manifest, find_point(self.manifest, policy), {})
        paths = {step.graph for step in self.manifest.program if step.graph is not None}
        graphs = {
            path: make_graph(
                bundle.read(path),
                name=str(bundle.path / path),
                threads=self.threads,
                provider=provider,
                session_options=session_options,
            )
            for path in sorted(paths)
        }
        self._engine: Engine | None = Engine(self.manifest.program, graphs)
        self._text: TextEncoder | None = None
        if bundle.has(TOKENIZER_NAME):
            facts = self.manifest.encoder
            self._text = TextEncoder(
                bundle.read(TOKENIZER_NAME), max_length=facts.max_length, pad_token_id=facts.pad_token_id
            )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        policy: str = "default",
        threads: int | None = None,
        provider: str = "cpu",
        session_options: onnxruntime.SessionOptions | None = None,
        compact: bool = True,
    ) -> EdgeModel:
        """Opens a bundle.

        Args:
            path: A bundle folder, or the hub id of one.
            policy: Name of an operating point in the bundle, or of a policy.
            threads: Threads inside an operator; None takes what the process may use.
            provider: `cpu` or `cuda`.
            session_options: ONNX Runtime options to use instead of ours.
            compact: Let finished rows leave their batch at once.

        Raises:
            BundleError: There is no bundle, or it is refused.
            ConfigError: The policy or provider is unknown.
            MissingExtraError: The provider, or what a hub id needs, is not installed.
        """
        return cls(
            find_bundle(path),
            policy=policy,
            threads=threads,
            provider=provider,
            session_options=session_options,
            compact=compact,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the outputs: the labels in the order of `predict_proba`'s columns, or that of the one value."""
        return self.manifest.labels

    @property
    def task(self) -> Task:
        """What the model's scores mean."""
        return self._task

    @property
    def policy(self) -> OperatingPoint:
        """The policy in use, with its knobs."""
        return self._point

    def set_policy(self, name: str | None = None, **knobs: float | int | str | None) -> None:
        """Changes when rows stop; calls already under way keep the old policy.

        Args:
            name: An operating point or a policy. None keeps the one in use. With None or `default`, knobs that belong
                to another policy of the method choose that one.
            knobs: Knobs to set, such as `threshold=0.85`.

        Raises:
            ConfigError: A name is unknown, a value makes no sense, or several policies have the knobs.
        """
        point = self._point if name is None else find_point(self.manifest, name)
        if name in (None, "default") and not set(knobs) <= set(knob_names(point.policy)):
            point = find_point(self.manifest, policy_with(self.manifest, knobs))
        self._policy, self._point = make_point(self.manifest, point, knobs)

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
        if isinstance(texts, str) or (isinstance(texts, tuple) and len(texts) == 2 and isinstance(texts[0], str)):
            return self._predict([texts], top_k, 1, max_length)[0]
        if not isinstance(texts, Iterable):
            raise DataError(f"texts: expected a str, a pair of str or a list of them, got {type(texts).__name__}.")
        return self._predict(list(texts), top_k, batch_size, max_length, show_progress=show_progress)

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
        if top_k < 1:
            raise ConfigError(f"top_k: expected 1 or more, got {top_k}.")
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts) or (isinstance(question, str) and not isinstance(context, str)):
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

        Args:
            texts: Texts or pairs; of a model that answers questions, pairs of a question and its passage.
            top_k: Also give this many best answers.
            batch_size: Most texts in a batch.
            max_length: Cut texts to this many tokens.
            window: How many texts are read ahead and sorted by length.
        """
        if window < 1:
            raise ConfigError(f"window: expected 1 or more, got {window}.")
        if isinstance(texts, str):
            raise DataError("expected texts, got one str; write [text].")
        result = _RESULTS[self._task.ASKED]
        iterator = iter(texts)
        number = 0
        while chunk := list(itertools.islice(iterator, window)):
            ranked = self._rank(chunk, top_k, batch_size, max_length, first=number)
            yield from (result(candidates, cost, with_top=top_k is not None) for candidates, cost in ranked)
            number += len(chunk)

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

    def forward(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        token_type_ids: NDArray[Any] | None = None,
    ) -> Forward:
        """Answers token ids, one batch as it is.

        Args:
            input_ids: int [rows, tokens].
            attention_mask: 1 for a token, 0 for padding, int [rows, tokens]; None means no padding.
            token_type_ids: int [rows, tokens]; None means all 0. A model with fewer than two segments ignores them.

        Raises:
            DataError: The shapes do not fit, an id is outside the vocabulary, or a mask has other values than 0 and 1
                or a row that is all padding.
        """
        engine = self._open_engine()
        ids = as_input(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else as_input(attention_mask)
        types = np.zeros_like(ids) if token_type_ids is None else as_input(token_type_ids)
        check_ids(self.manifest.encoder, ids, mask, types)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        outcome = engine.run(values, self._policy, compact=self.compact)
        ratio = outcome.macs / self.full_macs(mask.sum(axis=1))
        return Forward(outcome.scores, outcome.exit_layer, outcome.path, ratio, outcome.chosen, outcome.token_layers)

    def encode(self, texts: Sequence[Text], *, max_length: int | None = None, first: int = 0) -> Sequence[Encoded]:
        """Returns the rows of texts, as token ids; what `run_encoded` takes, so that tokenizing can be timed apart.

        Args:
            texts: Texts or pairs.
            max_length: Cut them to this many tokens.
            first: The number of the first text, for messages.
        """
        if self._text is None:
            raise EdgeBertError(
                f"{self.bundle.path}: this bundle has no tokenizer (it was exported with random weights); "
                "use forward(), or export a trained checkpoint."
            )
        return self._task.encode(texts, self._text, self._settings, max_length=max_length, first=first)

    def run_encoded(
        self,
        encoded: Sequence[Encoded],
        *,
        batch_size: int = 32,
        sort: bool = True,
        show_progress: bool = False,
    ) -> Outcome:
        """Runs token ids in batches of like length; every array of the outcome is in the order given.

        Args:
            encoded: Token ids.
            batch_size: Most rows in a batch.
            sort: Put rows of like length together. False batches them as they come.
            show_progress: Show a progress bar on stderr.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected 1 or more, got {batch_size}.")
        engine, policy = self._open_engine(), self._policy
        n = len(encoded)
        outcome = Outcome.empty(n, engine.layers)
        lengths = [len(row.ids) for row in encoded]
        plan = self._plan_ahead(engine, policy, encoded, lengths, outcome) if engine.plans_ahead else None
        groups = batches(
            lengths,
            max_rows=batch_size,
            max_tokens=MAX_BATCH_TOKENS,
            sort=sort,
            depths=None if plan is None else plan.sum(axis=1),
            cut_depths=policy.needs_equal_plans,
        )
        scores = []
        for places in _progress(groups, n, show_progress):
            inputs = self._pad([encoded[i] for i in places])
            part = engine.run(inputs, policy, compact=self.compact, plan=_part(plan, places))
            outcome.put(places, part)
            scores.append((places, part.scores))
        outcome.scores = join_rows(scores, n) if n else np.zeros((0, len(self.labels)))
        return outcome

    def _plan_ahead(
        self, engine: Engine, policy: Policy, encoded: Sequence[Encoded], lengths: Sequence[int], outcome: Outcome
    ) -> NDArray[np.bool_]:
        """Makes the plan of every row before they are put into batches, bool [rows, layers]."""
        plan = np.zeros((len(encoded), engine.layers), np.bool_)
        for places in batches(lengths, max_rows=_PLAN_ROWS, max_tokens=_PLAN_ROWS * MAX_BATCH_TOKENS):
            plan[places] = engine.plan(self._pad([encoded[i] for i in places]), policy, outcome, places)
        return plan

    def full_macs(self, lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """Returns what all layers spend on rows of these lengths, in multiply-accumulates, float64 [rows]."""
        return self._all_layers.of(lengths)

    def only_layers(self, layers: Sequence[int]) -> EdgeModel:
        """Returns a model that leaves the other layers out, untrained, on the same sessions.

        It serves to measure what a static model of fewer layers is worth.

        Args:
            layers: The layers to keep, counted from 1. The last one must stay: a head may be linked to it.
        """
        if self.manifest.encoder.layers not in layers:
            raise ConfigError(f"layers: expected the last one, {self.manifest.encoder.layers}, among {list(layers)}.")
        part = copy.copy(self)
        program = [step for step in self.manifest.program if step.kind != "layer" or step.layer in layers]
        part._engine = Engine(program, self.graphs)
        return part

    @property
    def graphs(self) -> dict[str, Graph]:
        """The loaded graphs, by their path in the bundle."""
        return dict(self._open_engine().graphs)

    def layer_rows(self, calls: Sequence[Call]) -> int:
        """Returns how many rows went through layer graphs in these session calls, all layers together.

        A layer in parts counts once.
        """
        steps = [step for step in self.manifest.program if step.kind == "layer" and step.part != "feed_forward"]
        layers = {step.graph for step in steps}
        return sum(call.rows for call in calls if call.graph in layers)

    def predictor_rows(self, calls: Sequence[Call]) -> int:
        """Returns how many rows went through gates, selects, exits and heads in these calls, linked ones too."""
        predictors = set()
        owner = None
        for step in self.manifest.program:
            owner = step.graph or owner
            if step.kind in ("gate", "select", "exit", "head"):
                predictors.add(owner)
        return sum(call.rows for call in calls if call.graph in predictors)

    def save_pretrained(self, path: str | Path, *, force: bool = False) -> Path:
        """Copies the bundle into a new folder, every file but the card checked again, and returns it."""
        target = Path(path)
        with publish(target, force=force) as partial:
            for name in [*self.manifest.files, MANIFEST_NAME]:
                if name == CARD_NAME and not (self.bundle.path / name).exists():
                    continue
                copy = partial / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                if name in (MANIFEST_NAME, CARD_NAME):
                    shutil.copyfile(self.bundle.path / name, copy)
                else:
                    copy.write_bytes(self.bundle.read(name))
        return target

    def close(self) -> None:
        """Lets the sessions go; later calls raise."""
        self._engine = None

    def __enter__(self) -> EdgeModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        first: int = 0,
    ) -> list[tuple[list[Candidate], Cost]]:
        """Returns the best answers of each text, and what it cost."""
        if top_k is not None and not self._task.HAS_PROBABILITIES:
            raise ConfigError(f"top_k: {self.manifest.task} has no label probabilities to rank; leave it out.")
        rows = self.encode(texts, max_length=max_length, first=first)
        outcome = self.run_encoded(rows, batch_size=batch_size, show_progress=show_progress)
        ranked = self._task.ranked(outcome.scores, rows, self.labels, top_k or 1)
        full = self.full_macs([len(row.ids) for row in rows])
        costs = costs_of(rows, outcome.path, outcome.exit_layer, outcome.macs, full, outcome.layer_tokens)
        return list(zip(ranked, costs, strict=True))

    def _pad(self, rows: Sequence[Encoded]) -> Values:
        assert self._text is not None
        return self._text.pad(rows)

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise EdgeBertError("this model is closed; open it again with EdgeModel.from_pretrained.")
        return self._engine


def _part(plan: NDArray[np.bool_] | None, places: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    return None if plan is None else plan[places]


def _sum_of_layers(manifest: Manifest) -> Macs:
    """Returns what all layers cost together, all of their pieces included."""
    layers = [step for step in manifest.program if step.kind == "layer" and step.part != "fused"]
    return total([step.macs for step in layers] + [step.each for step in layers for _ in range(step.choices)])


def _progress(groups: Iterator[NDArray[np.int64]], total: int, is_shown: bool) -> Iterator[NDArray[np.int64]]:
    """Passes the batches on, with a progress bar on stderr when asked for."""
    if not is_shown:
        yield from groups
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("texts", total=total)
        for group in groups:
            yield group
            bar.advance(task, len(group))
