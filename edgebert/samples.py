"""Recorded samples: a few random rows, and what a bundle answered to them when it was made.

They travel in the bundle as `samples.json`, so that `edgebert verify --deep` can ask the same again wherever the bundle
is, without torch and without what it was made from. The rule is the method's own, each row is alone in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.bundle import SAMPLES_NAME, Bundle
from edgebert.bundle.manifest import ADVICE, Manifest
from edgebert.decisions import Followed
from edgebert.errors import BundleError, DataError, QualityError
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import Forward
from edgebert.runtime.shaken import shaken_graphs
from edgebert.text import Values

FORMAT = "edgebert.samples/1"
ROWS = 8
MOST_TOKENS = 32

TOLERANCES = {"fp32": 1.0e-4, "fp16": 5.0e-2, "int8": 2.0e-2, "int4": 2.0e-2}
"""How far an answer may be off when it is asked for again, by the bundle's precision: a probability, or a value divided
by itself where that is more than 1. Another processor rounds otherwise, and in few bits that can move a number to the
next one there is."""

MARGINS = {"fp32": 1.0e-5, "fp16": 1.0e-2, "int8": 1.0e-2, "int4": 1.0e-2}
"""A row is clear if its decisions stay the same with all that decides off by so much."""

_CANDIDATES = 24
_DRAWS = 3


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row and its answer.

    Attributes:
        input_ids: Token ids.
        token_type_ids: Segment ids, as many.
        exit_layer: The layer after which it was answered, counted from 1.
        path: Which layers ran.
        values: What the scores mean, as the task has it: probabilities or a value, all of the row's in one list.
        is_clear: Whether its decisions were so far from any border that they must be the same again.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    exit_layer: int
    path: tuple[bool, ...]
    values: tuple[float, ...]
    is_clear: bool


class Samples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    format: str
    rows: Annotated[tuple[Sample, ...], msgspec.Meta(min_length=1, max_length=1000)]


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """How the samples compared.

    Attributes:
        samples: How many there are.
        max_difference: Largest difference of an answer.
        tolerance: What it had to stay below.
        within_margin: How many were decided otherwise and lay too near a border for that to mean anything.
    """

    samples: int
    max_difference: float
    tolerance: float
    within_margin: int


def record_samples(bundle: Bundle, *, seed: int = 0) -> bytes:
    """Asks a bundle and returns the bytes of its `samples.json`.

    Of random rows those come first whose decisions lie far from every border.

    Args:
        bundle: The bundle; its samples, if it has any, are not looked at.
        seed: Of the rows.

    Raises:
        QualityError: An answer is not a finite number.
    """
    rng = np.random.default_rng(seed)
    most = min(MOST_TOKENS, bundle.manifest.encoder.max_length)
    lengths = np.linspace(min(3, most), most, ROWS).round().astype(int)
    clear: dict[int, Sample] = {}
    other: dict[int, Sample] = {}
    with _opened(bundle) as model:
        margin = MARGINS[bundle.manifest.precision]
        shaken = [model.with_graphs(shaken_graphs(model.graphs, seed, margin)) for seed in range(_DRAWS)]
        for number in range(_CANDIDATES):
            place = number % ROWS
            if place in clear:
                continue
            sample = _ask(model, shaken, _row(rng, int(lengths[place]), bundle.manifest))
            (clear if sample.is_clear else other)[place] = sample
    rows = {**other, **clear}
    samples = Samples(format=FORMAT, rows=tuple(rows[place] for place in sorted(rows)))
    return msgspec.json.encode(samples) + b"\n"


def replay_samples(bundle: Bundle) -> Replay:
    """Asks a bundle what it was asked when it was made, and compares.

    Raises:
        BundleError: It has no samples, or they do not fit it.
        QualityError: An answer differs by more than the tolerance, or a clear row is decided otherwise.
    """
    where, manifest = bundle.path / SAMPLES_NAME, bundle.manifest
    samples = _read(bundle)
    tolerance = TOLERANCES[manifest.precision]
    largest, excused = 0.0, 0
    with _opened(bundle) as model:
        for number, sample in enumerate(samples.rows):
            try:
                got = model.forward(**_inputs(sample))
            except (DataError, ValueError) as error:
                raise BundleError(f"{where}: sample {number} does not fit the bundle: {error} {ADVICE}") from error
            is_same = (int(got.exit_layer[0]), tuple(got.path[0].tolist())) == (sample.exit_layer, sample.path)
            values = _values(model, got)
            if len(values) != len(sample.values) or len(sample.path) != len(got.path[0]):
                raise BundleError(f"{where}: sample {number} does not fit the bundle; {ADVICE}")
            difference = _largest_difference(values, np.array(sample.values))
            if is_same and difference <= tolerance:
                largest = max(largest, difference)
            elif sample.is_clear:
                raise QualityError(
                    f"{where}: sample {number} of {len(sample.input_ids)} tokens is answered otherwise than when the "
                    f"bundle was made: after layer {got.exit_layer[0]} (was {sample.exit_layer}), off by "
                    f"{difference:.1e} (tolerance {tolerance:.0e}); the graphs, or what runs them, have changed."
                )
            else:
                excused += 1
    return Replay(samples=len(samples.rows), max_difference=largest, tolerance=tolerance, within_margin=excused)


def differing_rows(first: Followed | Forward, second: Followed | Forward) -> NDArray[np.bool_]:
    """Says which rows took another path, stopped elsewhere, ran other pieces or tokens, or got another answer.

    An answer is a label, or the start and the end of a span.
    """
    answers = first.scores.argmax(axis=1) != second.scores.argmax(axis=1)
    differs: NDArray[np.bool_] = (
        (first.path != second.path).any(axis=1)
        | (first.exit_layer != second.exit_layer)
        | answers.reshape(len(answers), -1).any(axis=1)
    )
    for name, chosen in first.chosen.items():
        differs |= (chosen != second.chosen[name]).any(axis=(1, 2))
    if first.token_layers is not None and second.token_layers is not None:
        differs |= (first.token_layers != second.token_layers).any(axis=1)
    return differs


def _opened(bundle: Bundle) -> EdgeModel:
    """Opens a bundle as samples are asked: under its own rule, on one thread, from the bundle's own graphs."""
    model = EdgeModel(bundle, threads=1, prepare=False)
    model.set_policy(bundle.manifest.rule.policy, **bundle.manifest.rule.knobs)
    return model


def _row(rng: np.random.Generator, tokens: int, manifest: Manifest) -> Values:
    facts = manifest.encoder
    ids = rng.integers(1, max(facts.vocabulary_size, 2), (1, tokens)) % facts.vocabulary_size
    types = np.sort(rng.integers(0, max(facts.token_types, 1), (1, tokens)))
    return {"input_ids": ids, "token_type_ids": types}


def _ask(model: EdgeModel, shaken: Sequence[EdgeModel], row: Values) -> Sample:
    answer = model.forward(**row)
    values = _values(model, answer)
    if not np.isfinite(values).all():
        raise QualityError(
            f"{model.bundle.path}: answers a random row of {row['input_ids'].size} tokens with {values}."
        )
    return Sample(
        input_ids=tuple(row["input_ids"][0].tolist()),
        token_type_ids=tuple(row["token_type_ids"][0].tolist()),
        exit_layer=int(answer.exit_layer[0]),
        path=tuple(answer.path[0].tolist()),
        values=tuple(float(f"{value:.7g}") for value in values),
        is_clear=not any(differing_rows(answer, other.forward(**row)).any() for other in shaken),
    )


def _values(model: EdgeModel, answer: Forward) -> NDArray[np.float64]:
    values: NDArray[np.float64] = model.task.values(answer.scores)[0].astype(np.float64).ravel()
    return values


def _largest_difference(got: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Returns the largest difference, of numbers above 1 relative to them; infinity where there is no number."""
    differences = np.abs(got - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.nan_to_num(differences, nan=np.inf).max(initial=0.0))


def _inputs(sample: Sample) -> Values:
    return {
        "input_ids": np.array([sample.input_ids], np.int64),
        "token_type_ids": np.array([sample.token_type_ids], np.int64),
    }


def _read(bundle: Bundle) -> Samples:
    where = bundle.path / SAMPLES_NAME
    if not bundle.has(SAMPLES_NAME):
        raise BundleError(f"{where}: missing, so there is nothing to compare with; export the bundle again.")
    try:
        samples = msgspec.json.decode(bundle.read(SAMPLES_NAME), type=Samples)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{where}: no recorded samples ({error}); {ADVICE}") from error
    if samples.format != FORMAT:
        raise BundleError(f"{where}: expected {FORMAT}, got {samples.format[:80]!r}; {ADVICE}")
    return samples
