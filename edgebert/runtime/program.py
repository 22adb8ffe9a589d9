"""A bundle, loaded: token ids in, an outcome for every row out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex, TypeVar

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgebert.arguments import check_count, check_positive
from edgebert.bundle import CARD_NAME, MAX_CARD_BYTES, SIGNATURE_NAME, TOKENIZER_NAME, Bundle
from edgebert.bundle.files import read_regular
from edgebert.bundle.manifest import MANIFEST_NAME, OperatingPoint, encode_manifest
from edgebert.bundle.publish import publish
from edgebert.decisions import all_layers
from edgebert.errors import BundleError, ConfigError, EdgeBertError
from edgebert.policies import Policy, knob_names
from edgebert.runtime.engine import Engine
from edgebert.runtime.forks import Origin, inside_model
from edgebert.runtime.graphs import Graph, MemoryUse
from edgebert.runtime.hub import find_bundle
from edgebert.runtime.inputs import as_input, check_ids
from edgebert.runtime.loading import load_graphs
from edgebert.runtime.meaning import check_meaning
from edgebert.runtime.outcome import Call, Outcome
from edgebert.runtime.points import find_point, make_point, policy_with
from edgebert.runtime.prepared import Prepared, prepare_bundle, usable_prepared
from edgebert.runtime.results import Forward
from edgebert.runtime.rows import run_rows
from edgebert.runtime.sessions import has_threads, provider_name
from edgebert.runtime.threads import MOST_THREADS, available_threads
from edgebert.signing import check_signature
from edgebert.signing._format import MAX_SIGNATURE_BYTES
from edgebert.tasks import Task
from edgebert.text import Encoded, Text, TextEncoder, Values

_P = TypeVar("_P", bound="Program")

_AS_THEY_ARE = {CARD_NAME: MAX_CARD_BYTES, SIGNATURE_NAME: MAX_SIGNATURE_BYTES}
"""Files that no hash in the manifest speaks for, with the most bytes they may have."""


class Program:
    """A bundle's program with its graphs, under a policy.

    Safe to use from several threads, which share the policy. In a fork of its process it is refused unless it computes
    on the calling thread alone (`threads=1`), and it cannot be pickled.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        policy: str = "default",
        threads: int | None = None,
        provider: str = "cpu",
        session_options: onnxruntime.SessionOptions | None = None,
        compact: bool = True,
        prepare: bool | None = None,
        memory_budget_mb: float | None = None,
    ) -> None:
        """Loads the graphs of an opened bundle; see `from_pretrained`."""
        if threads is not None:
            threads = check_count("threads", threads, most=MOST_THREADS)
        if memory_budget_mb is not None:
            memory_budget_mb = check_positive("memory_budget_mb", memory_budget_mb)
        if memory_budget_mb is not None and provider_name(provider) != "cpu":
            raise ConfigError(f"memory_budget_mb: goes with the provider cpu; what {provider} holds is not known.")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._is_part = False
        self._task, self._settings = check_meaning(bundle)
        self.threads = threads or available_threads()
        self.provider = provider_name(provider)
        self.compact = compact
        self._all_layers = all_layers(self.manifest.program)
        self._rule = make_point(self.manifest, find_point(self.manifest, policy, where=str(bundle.path)), {})
        self._setting_rule = threading.Lock()
        self._origin = Origin(has_threads=has_threads(self.threads, self.provider, session_options))
        with inside_model():
            self.prepared = _prepared(bundle, self.provider, session_options, prepare=prepare)
            graphs, self._shelf = load_graphs(
                bundle,
                threads=self.threads,
                provider=self.provider,
                session_options=session_options,
                prepared=self.prepared,
                memory_budget_mb=memory_budget_mb,
            )
        self._engine: Engine | None = Engine(self.manifest.program, graphs)
        self._text: TextEncoder | None = None
        if bundle.has(TOKENIZER_NAME):
            facts = self.manifest.encoder
            self._text = TextEncoder(
                bundle.read(TOKENIZER_NAME), max_length=facts.max_length, pad_token_id=facts.pad_token_id
            )
            if (largest := self._text.largest_id) >= facts.vocabulary_size:
                raise BundleError(
                    f"{bundle.path / TOKENIZER_NAME}: has ids up to {largest}, the model knows {facts.vocabulary_size} "
                    "of them; give the checkpoint its own tokenizer and export again."
                )

    @classmethod
    def from_pretrained(
        cls: type[_P],
        path: str | Path,
        *,
        policy: str = "default",
        threads: int | None = None,
        provider: str = "cpu",
        session_options: onnxruntime.SessionOptions | None = None,
        compact: bool = True,
        prepare: bool | None = None,
        memory_budget_mb: float | None = None,
        public_key: str | Path | None = None,
    ) -> _P:
        """Opens a bundle.

        Args:
            path: A bundle folder, or the hub id of one.
            policy: Name of an operating point in the bundle, or of a policy.
            threads: Threads inside an operator; None takes what the process may use.
            provider: A file in `edgebert/runtime/providers`, such as `cpu`, or ONNX Runtime's name of it.
            session_options: ONNX Runtime options to use instead of ours.
            compact: Let finished rows leave their batch at once.
            prepare: Prepare the graphs for this machine first, unless that was done (`edgebert prepare`). None uses
                what was prepared, False does not.
            memory_budget_mb: What the loaded graphs may hold together, in millions of bytes: they are loaded when they
                are first run, and those that run least are let go. None loads them all, at once.
            public_key: The key, in PEM, that must have signed the bundle (`edgebert sign`): nothing else is loaded.
                None does not ask for a signature.

        Raises:
            BundleError: There is no bundle, or it is refused, or not as it was signed.
            ConfigError: The policy or provider is unknown, or the memory budget has no room for a graph alone.
            DataError: The public key cannot be used.
            MissingExtraError: The provider, or what a hub id or a signature needs, is not installed.
        """
        bundle = find_bundle(path)
        if public_key is not None:
            check_signature(bundle, public_key)
        return cls(
            bundle,
            policy=policy,
            threads=threads,
            provider=provider,
            session_options=session_options,
            compact=compact,
            prepare=prepare,
            memory_budget_mb=memory_budget_mb,
        )

    @property
    def memory(self) -> MemoryUse:
        """What the graphs that load late hold, and how far that is within the memory budget."""
        with inside_model():
            return self._shelf.use

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
        """The policy in use, with its knobs, and what is known of them if nothing was set on top; a copy."""
        point = self._rule[1]
        return msgspec.structs.replace(point, knobs=dict(point.knobs))

    def set_policy(self, name: str | None = None, **knobs: float | int | str | None) -> None:
        """Changes when rows stop; calls and streams already under way keep the old policy.

        Args:
            name: An operating point or a policy. None keeps the one in use. With None or `default`, knobs that belong
                to another policy of the method choose that one.
            knobs: Knobs to set, such as `threshold=0.85`.

        Raises:
            ConfigError: A name is unknown, a value makes no sense, or several policies have the knobs.
        """
        with inside_model(), self._setting_rule:
            point = self._rule[1] if name is None else find_point(self.manifest, name, where=str(self.bundle.path))
            if name in (None, "default") and not set(knobs) <= set(knob_names(point.policy)):
                point = find_point(self.manifest, policy_with(self.manifest, knobs))
            self._rule = make_point(self.manifest, point, knobs)

    def with_policy(self: _P, name: str | None = None, **knobs: float | int | str | None) -> _P:
        """Returns a model under a policy of its own, on the same sessions: one loaded bundle, a budget for each caller.

        It costs nothing to make. Closing it closes nothing; closing the model it comes from ends both.

        Args:
            name: See `set_policy`.
            knobs: See `set_policy`.

        Raises:
            ConfigError: As `set_policy`.
        """
        view = self._with_engine(self._open_engine())
        view._setting_rule = threading.Lock()
        view.set_policy(name, **knobs)
        return view

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
            DataError: They are no whole numbers, the shapes do not fit, an id is outside the vocabulary, or a mask has
                other values than 0 and 1 or a row that is all padding.
        """
        engine = self._open_engine()
        ids = as_input("input_ids", input_ids)
        mask = np.ones_like(ids) if attention_mask is None else as_input("attention_mask", attention_mask)
        types = np.zeros_like(ids) if token_type_ids is None else as_input("token_type_ids", token_type_ids)
        check_ids(self.manifest.encoder, ids, mask, types)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        policy, _ = self._rule
        with inside_model():
            outcome = engine.run(values, policy, compact=self.compact)
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
        with inside_model():
            return self._task.encode(texts, self._text, self._settings, max_length=max_length, first=first)

    def tokens(self, row: Encoded) -> list[str]:
        """Returns the tokens of a row as the bundle's vocabulary spells them."""
        assert self._text is not None
        return self._text.tokens(row.ids)

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
        policy, _ = self._rule
        return self._run_rows(encoded, policy, batch_size=batch_size, sort=sort, show_progress=show_progress)

    def _run_rows(
        self, encoded: Sequence[Encoded], policy: Policy, *, batch_size: int, sort: bool, show_progress: bool
    ) -> Outcome:
        """Runs token ids under a policy; see `run_encoded`."""
        batch_size = check_count("batch_size", batch_size)
        outcome = run_rows(
            self._open_engine(),
            policy,
            encoded,
            pad=self.pad,
            batch_size=batch_size,
            sort=sort,
            compact=self.compact,
            show_progress=show_progress,
        )
        if not encoded:
            outcome.scores = np.zeros((0, len(self.labels)))
        return outcome

    def full_macs(self, lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """Returns what all layers spend on rows of these lengths, in multiply-accumulates, float64 [rows]."""
        return self._all_layers.of(lengths)

    def only_layers(self: _P, layers: Sequence[int]) -> _P:
        """Returns a model that leaves the other layers out, untrained, on the same sessions.

        It serves to measure what a static model of fewer layers is worth.

        Args:
            layers: The layers to keep, counted from 1. The last one must stay: a head may be linked to it.
        """
        if self.manifest.encoder.layers not in layers:
            raise ConfigError(f"layers: expected the last one, {self.manifest.encoder.layers}, among {list(layers)}.")
        program = [step for step in self.manifest.program if step.kind != "layer" or step.layer in layers]
        return self._with_engine(Engine(program, self.graphs))

    def with_graphs(self: _P, graphs: Mapping[str, Graph]) -> _P:
        """Returns a model that runs some of its graphs, by path, in another form, and shares the others."""
        return self._with_engine(Engine(self.manifest.program, {**self.graphs, **graphs}))

    def _with_engine(self: _P, engine: Engine) -> _P:
        """Returns a model that runs another engine and shares everything else, so that closing it closes no graphs."""
        part = copy.copy(self)
        part._is_part = True
        part._engine = engine
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
        """Copies the bundle into a new folder, every file but card and signature checked again, and returns it."""
        target = Path(path)
        with publish(target, force=force) as partial:
            for name in [*self.manifest.files, MANIFEST_NAME, SIGNATURE_NAME]:
                if name in _AS_THEY_ARE and not (self.bundle.path / name).exists():
                    continue
                copy = partial / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                if name == MANIFEST_NAME:
                    copy.write_bytes(encode_manifest(self.manifest))
                elif name in _AS_THEY_ARE:
                    copy.write_bytes(read_regular(self.bundle.path, name, limit=_AS_THEY_ARE[name]))
                else:
                    copy.write_bytes(self.bundle.read(name))
        return target

    def close(self) -> None:
        """Lets the sessions go; later calls raise, those under way end as they would have."""
        with inside_model():
            self._engine = None
            if not self._is_part:
                self._shelf.close()

    def __enter__(self: _P) -> _P:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self: _P) -> _P:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise EdgeBertError(
            f"{self.bundle.path}: an open model cannot be pickled, so not be sent to another process; "
            "send the path, and open it there with from_pretrained."
        )

    def pad(self, rows: Sequence[Encoded]) -> Values:
        """Returns rows as one batch, as `forward` takes it: int64 [rows, tokens] each."""
        assert self._text is not None
        return self._text.pad(rows)

    def _open_engine(self) -> Engine:
        if self._engine is None or self._shelf.is_closed:
            raise EdgeBertError("this model is closed; open it again with EdgeModel.from_pretrained.")
        self._origin.check(str(self.bundle.path))
        return self._engine


def _prepared(
    bundle: Bundle, provider: str, session_options: onnxruntime.SessionOptions | None, *, prepare: bool | None
) -> Prepared | None:
    """Returns the bundle's prepared graphs, if there are any that its sessions would be made from."""
    if prepare and (provider != "cpu" or session_options is not None):
        raise ConfigError("prepare: goes with the provider cpu and our own session options.")
    if prepare:
        return prepare_bundle(bundle)
    if prepare is False or provider != "cpu" or session_options is not None:
        return None
    return usable_prepared(bundle)
