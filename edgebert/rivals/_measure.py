"""What every side does when it is timed: the calls of a case, their warm-up, and one turn of timed calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Knobs
from edgebert.energy import EnergyMeter
from edgebert.rivals._memory import PrivateMemory
from edgebert.rivals._protocol import Case, Prepared, Timed
from edgebert.runtime.graphs import Graph
from edgebert.tasks import Task
from edgebert.text import Encoded, Text, Values, join_rows

TURN_MS = 200.0
"""How long a turn of random token ids should about last."""

_FEWEST_CALLS, _MOST_CALLS = 3, 200
_WARM_UP_CALLS = 3
_DIFFERENT_BATCHES = 16

LayersRun = NDArray[Any] | None
"""How many layers ran on each row; None: all of the side's layers on every row."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a side runs: see the fields of the same names in `Ready`; `layers` is the model's depth, `task` its task."""

    method: str
    policy: str
    knobs: Knobs
    precision: str
    layers: int
    task: Task


class Side(Protocol):
    """A model that is timed, made from a `Spec`."""

    def describe(self) -> Description:
        """Returns what this side runs."""

    def choose(self, case: Case) -> None:
        """Takes on the case's policy; called before each turn, outside the timed part."""

    def encode(self, texts: Sequence[Text], max_length: int | None) -> Sequence[Encoded]:
        """Returns the rows of texts, as token ids, cut to `max_length` of them."""

    def step_graphs(self) -> Mapping[str, Sequence[Graph]]:
        """Returns the graphs of a program by the kind of their step; nothing where there is no program."""

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is: `input_ids`, `attention_mask` and `token_type_ids`, int64 [rows, tokens]."""

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids in batches of like length, at most `batch_size` rows each."""

    def scores(self, rows: Sequence[Encoded], batch_size: int) -> NDArray[Any]:
        """Returns what `run_list` answers: scores in the order of the bundle's labels, [rows, ...]."""


Call = Callable[[], LayersRun]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A prepared case.

    Attributes:
        case: The case.
        calls: The calls of one turn.
        opening: An untimed call that starts every turn, since the other side had the caches before.
    """

    case: Case
    calls: list[Call]
    opening: Call


def prepare(side: Side, case: Case, number: int) -> tuple[Measurement, Prepared]:
    """Makes the calls of a case, times the very first and warms up every shape they have."""
    side.choose(case)
    return _prepare_texts(side, case, number) if case.texts else _prepare_ids(side, case, number)


def time_turn(side: Side, measurement: Measurement, memory: PrivateMemory) -> Timed:
    """Times every call of a prepared case once."""
    side.choose(measurement.case)
    measurement.opening()
    call_ms, layers = [], []
    meter = EnergyMeter()
    for call in measurement.calls:
        start = time.perf_counter()
        layers_run = call()
        call_ms.append(_milliseconds_since(start))
        layers.append(layers_run)
    energy = meter.read()
    run = [rows for rows in layers if rows is not None]
    mean_layers = float(np.concatenate(run).mean()) if run else float(side.describe().layers)
    return Timed(call_ms=call_ms, mean_layers=mean_layers, energy=energy, private_mb=memory.grown_mb())


def predict(side: Side, case: Case) -> list[Any]:
    """Returns what a side answers to a case's texts, in the batches in which it is timed on them."""
    side.choose(case)
    rows = side.encode(case.texts, case.max_length)
    places = np.arange(len(rows))
    if case.scenario == "offline":
        parts = [(places, side.scores(rows, case.batch))]
    else:
        starts = np.flatnonzero(np.diff([row.text for row in rows])) + 1
        alone = np.split(places, starts)
        parts = [(part, side.scores([rows[place] for place in part], len(part))) for part in alone]
    answers: list[Any] = side.describe().task.predictions(join_rows(parts, len(rows)), rows).tolist()
    return answers


def _prepare_texts(side: Side, case: Case, number: int) -> tuple[Measurement, Prepared]:
    """The texts, tokenized one at a time: a call for each, or one call for all of them."""
    start = time.perf_counter()
    texts = [side.encode([text], case.max_length) for text in case.texts]
    tokenize_ms = _milliseconds_since(start) / len(texts)
    rows = [row for text in texts for row in text]
    if case.scenario == "offline":
        calls: list[Call] = [partial(side.run_list, rows, case.batch)]
        opening: Call = partial(side.run_list, rows[: case.batch], case.batch)
        warm_up = calls
    else:
        calls = [partial(side.run_list, text, len(text)) for text in texts]
        opening = calls[0]
        shapes = [tuple(len(row.ids) for row in text) for text in texts]
        warm_up = list(dict(zip(shapes, calls, strict=True)).values())
    first_ms = _time(opening)
    for call in warm_up:
        call()
    prepared = Prepared(
        case=number,
        texts_per_call=len(texts) // len(calls),
        first_ms=first_ms,
        tokenize_ms=tokenize_ms,
        mean_tokens=float(np.mean([len(row.ids) for row in rows])),
    )
    return Measurement(case=case, calls=calls, opening=opening), prepared


def _prepare_ids(side: Side, case: Case, number: int) -> tuple[Measurement, Prepared]:
    """The same random token ids for every side; as many calls as make a turn of about `TURN_MS`."""
    generator = np.random.default_rng(0)
    shape = (case.batch, case.length)
    batches: list[Call] = []
    for _ in range(_DIFFERENT_BATCHES):
        ids = generator.integers(0, case.vocabulary_size, shape, np.int64)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        batches.append(partial(side.run_batch, values))
    first_ms = _time(batches[0])
    typical_ms = float(np.median([_time(batch) for batch in batches[:_WARM_UP_CALLS]]))
    count = int(np.clip(TURN_MS / max(typical_ms, 1e-3), _FEWEST_CALLS, _MOST_CALLS))
    measurement = Measurement(
        case=case,
        calls=[batches[index % _DIFFERENT_BATCHES] for index in range(count)],
        opening=batches[0],
    )
    return measurement, Prepared(
        case=number,
        texts_per_call=case.batch,
        first_ms=first_ms,
        tokenize_ms=None,
        mean_tokens=float(case.length),
    )


def _time(call: Call) -> float:
    start = time.perf_counter()
    call()
    return _milliseconds_since(start)


def _milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000.0
