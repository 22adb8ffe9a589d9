"""What the static rivals share: they run every layer on every row of every batch, at the bundle's encoder shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.errors import ConfigError
from edgebert.rivals._measure import Description, LayersRun
from edgebert.rivals._protocol import Case, Spec
from edgebert.runtime.graphs import Graph
from edgebert.runtime.program import MAX_BATCH_TOKENS
from edgebert.tasks import load_task, task_settings
from edgebert.text import Encoded, Text, TextEncoder, Values, batches


class StaticSide(ABC):
    """A static model with the bundle's tokenizer; a subclass says how one batch is answered.

    Attributes:
        precision: Of the weights.
        layers: Depth of the model.
    """

    precision = "fp32"

    def __init__(self, spec: Spec) -> None:
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
    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""

    def describe(self) -> Description:
        """Returns what a static model is."""
        return Description(method="plain", policy="never", knobs={}, precision=self.precision, layers=self.layers)

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

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids in the batches that a bundle would make of them."""
        lengths = [len(row.ids) for row in rows]
        for places in batches(lengths, max_rows=batch_size, max_tokens=MAX_BATCH_TOKENS):
            self.run_batch(self._tokenizer().pad([rows[place] for place in places]))
        return None

    def _tokenizer(self) -> TextEncoder:
        if self._text is None:
            raise ConfigError(f"{self.bundle.path}: has no tokenizer, so texts cannot be timed; time token lengths.")
        return self._text
