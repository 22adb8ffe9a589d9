"""What the static rivals share: they run every layer on every row of every batch, at the bundle's encoder shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.errors import ConfigError
from edgebert.rivals._measure import Description, LayersRun
from edgebert.rivals._protocol import Case, Spec
from edgebert.runtime.graphs import Graph
from edgebert.runtime.rows import MAX_BATCH_TOKENS
from edgebert.tasks import load_task, task_settings
from edgebert.text import Encoded, Text, TextEncoder, Values, batches, join_rows


class StaticSide(ABC):
    """A static model with the bundle's tokenizer; a subclass says how one batch is answered.

    Attributes:
        precision: Of the weights, or of what is computed with them where that is less.
        layers: Depth of the model.
        label_places: For each label of the bundle, its place in the model's scores; None where they are the same.
    """

    precision = "fp32"
    label_places: NDArray[np.int64] | None = None

    def __init__(self, spec: Spec) -> None:
        self.threads = spec.threads
        self.bundle = open_bundle(spec.bundle)
        self.facts = self.bundle.manifest.encoder
        self.layers = self.facts.layers
        self._task = load_task(self.bundle.manifest.task)
        self._settings = task_settings(self._task, self.bundle.manifest.task_settings, where=spec.bundle)
        self._text: TextEncoder | None = None
        if self.bundle.has(TOKENIZER_NAME):
            self._text = TextEncoder(
                self.bundle.read(TOKENIZER_NAME),
                max_length=self.facts.max_length,
                pad_token_id=self.facts.pad_token_id,
            )

    @abstractmethod
    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns what the model gives for one batch: its logits, or those of starts and of ends."""

    @abstractmethod
    def write_model(self, folder: Path) -> list[str]:
        """Writes the model as a user would have it; returns a way in `_cold`, and its arguments after the threads."""

    def save(self, folder: Path) -> list[str]:
        """Writes model and tokenizer into a folder; returns what `python -m edgebert.rivals._cold` opens it with."""
        self._tokenizer()
        (folder / "tokenizer.json").write_bytes(self.bundle.read(TOKENIZER_NAME))
        way, *arguments = self.write_model(folder)
        return [way, str(folder), str(self.threads), *arguments]

    def describe(self) -> Description:
        """Returns what a static model is."""
        return Description(
            method="plain", policy="never", knobs={}, precision=self.precision, layers=self.layers, task=self._task
        )

    def choose(self, case: Case) -> None:
        """Checks that the case asks for no policy."""
        if case.policy is not None:
            raise ConfigError(f"a static side has no policy, got {case.policy!r}; time a bundle that has it.")

    def encode(self, texts: Sequence[Text], max_length: int | None) -> Sequence[Encoded]:
        """Returns the rows of texts as the bundle makes them, from its tokenizer."""
        return self._task.encode(texts, self._tokenizer(), self._settings, max_length=max_length)

    def step_graphs(self) -> Mapping[str, Sequence[Graph]]:
        """Returns nothing: a static model has no program."""
        return {}

    def pad(self, rows: Sequence[Encoded]) -> Values:
        """Returns rows as one batch, int64 [rows, tokens] each."""
        return self._tokenizer().pad(rows)

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""
        self.answer(values)
        return None

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids in the batches that a bundle would make of them."""
        for _, values in self._batches(rows, batch_size):
            self.answer(values)
        return None

    def scores(self, rows: Sequence[Encoded], batch_size: int) -> NDArray[Any]:
        """Returns what the model answers, [rows, ...]."""
        parts = [(places, self._scores(self.answer(values))) for places, values in self._batches(rows, batch_size)]
        return join_rows(parts, len(rows))

    def _batches(self, rows: Sequence[Encoded], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Values]]:
        lengths = [len(row.ids) for row in rows]
        for places in batches(lengths, max_rows=batch_size, max_tokens=MAX_BATCH_TOKENS):
            yield places, self.pad([rows[place] for place in places])

    def _scores(self, outputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if self._task.PER_TOKEN:
            return outputs[0] if outputs[0].ndim == 3 else np.stack(outputs[:2], axis=-1)
        return outputs[0] if self.label_places is None else outputs[0][:, self.label_places]

    def _tokenizer(self) -> TextEncoder:
        if self._text is None:
            raise ConfigError(f"{self.bundle.path}: has no tokenizer, so texts cannot be timed; time token lengths.")
        return self._text
