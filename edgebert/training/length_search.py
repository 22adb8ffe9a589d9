"""Searches for lengths that cost little and answer well: by evolution, or with optuna's samplers.

Lengths are shares of a row's real length, in hundredths, one a layer, none larger than the one before it. What they
cost and how well they answer is measured by whoever asks for a search; nothing here knows of models.

Evolution as in the Length-Adaptive Transformer (Kim and Cho, 2021, https://arxiv.org/abs/2010.07003): a population
that is its own Pareto front, mutation and crossover. Departures from its code: shares instead of tokens, so that one
result serves inputs of all lengths; the first population is spaced over the layers and lengths there are; a candidate
counts as known by its lengths, not by its cost; nothing dominated stays; and both attempts and measurements are
bounded, where the code can go round for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from edgebert.errors import require

Lengths = tuple[int, ...]
"""Hundredths of a row's length that go on from each layer, none larger than the one before."""

Measure = Callable[[Lengths], tuple[float, float]]
"""Returns what lengths cost (lower is better) and how well they answer (higher is better)."""

Algorithm = Literal["evolution", "tpe", "nsga2"]

ALL = 100
FEWEST = 2
_FIRST_POPULATION = 20
_CHILDREN = 30
_ATTEMPTS = 20
_SMALLEST_RATIO = 0.3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Lengths that were measured: what they cost, and how well they answer."""

    lengths: Lengths
    cost: float
    metric: float


def search_lengths(
    measure: Measure,
    largest_drops: Sequence[float],
    *,
    algorithm: Algorithm,
    evaluations: int,
    seed: int,
) -> list[Candidate]:
    """Searches, and returns the Pareto front, the cheapest first.

    Args:
        measure: Measures lengths; it is asked once about each.
        largest_drops: Share of its tokens, 0 to 1, that each layer drops in the cheapest lengths evolution starts
            from; as in the code the ones that training went down to.
        algorithm: `evolution`, or optuna's `tpe` or `nsga2`.
        evaluations: How many lengths are measured at most; every token in every layer is always among them.
        seed: Of the random choices.

    Raises:
        MissingExtraError: optuna is needed and not installed.
    """
    pool, layers = _Pool(measure, evaluations), len(largest_drops)
    pool.add((ALL,) * layers)
    if algorithm == "evolution":
        _evolve(pool, largest_drops, np.random.default_rng(seed))
    else:
        _search_with_optuna(pool, layers, algorithm, seed)
    return pareto_front(list(pool.known.values()))


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns those that no other one beats in cost without answering worse, the cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, -c.metric, c.lengths)):
        if not front or candidate.metric > front[-1].metric:
            front.append(candidate)
    return front


class _Pool:
    """What has been measured so far, and how much more may be."""

    def __init__(self, measure: Measure, evaluations: int) -> None:
        self.measure = measure
        self.evaluations = evaluations
        self.known: dict[Lengths, Candidate] = {}

    @property
    def is_spent(self) -> bool:
        return len(self.known) >= self.evaluations

    def add(self, lengths: Lengths) -> Candidate:
        """Returns the candidate, measured unless it is known."""
        if lengths not in self.known:
            cost, metric = self.measure(lengths)
            self.known[lengths] = Candidate(lengths=lengths, cost=cost, metric=metric)
        return self.known[lengths]


def _evolve(pool: _Pool, largest_drops: Sequence[float], generator: np.random.Generator) -> None:
    size = min(_FIRST_POPULATION, max(pool.evaluations // 3, 1))
    for lengths in first_population(largest_drops, size):
        if not pool.is_spent:
            pool.add(lengths)
    found = True
    while found and not pool.is_spent:
        front = [candidate.lengths for candidate in pareto_front(list(pool.known.values()))]
        found = False
        for make in (_mutated, _crossed):
            found |= _add_children(pool, partial(make, front, generator))


def _add_children(pool: _Pool, make: Callable[[], Lengths]) -> bool:
    """Measures new lengths, and says whether there were any."""
    children = 0
    for _ in range(_CHILDREN * _ATTEMPTS):
        if children == _CHILDREN or pool.is_spent:
            break
        lengths = make()
        if lengths not in pool.known:
            pool.add(lengths)
            children += 1
    return children > 0


def first_population(largest_drops: Sequence[float], size: int) -> list[Lengths]:
    """Returns lengths from the cheapest to all tokens, each layer's a power of its cheapest, their sums evenly spaced.

    Where all layers drop the same share, each of these lengths falls at a constant ratio.
    """
    cheapest = np.cumprod(1 - np.asarray(largest_drops))
    powers = np.linspace(1.0, 0.0, 10_000)
    sums = (cheapest ** powers[:, None]).sum(axis=1)
    wanted = np.linspace(sums[0], sums[-1], size)
    chosen = powers[np.abs(sums[:, None] - wanted).argmin(axis=0)]
    return [_in_hundredths(cheapest**power) for power in chosen]


def _in_hundredths(shares: np.ndarray[Any, Any]) -> Lengths:
    return tuple(int(length) for length in np.clip(np.rint(shares * ALL), FEWEST, ALL))


def _mutated(front: Sequence[Lengths], generator: np.random.Generator) -> Lengths:
    parent = front[generator.integers(len(front))]
    child: list[int] = []
    for place, old in enumerate(parent):
        highest = child[-1] if child else ALL
        lowest = min(parent[place + 1] if place + 1 < len(parent) else FEWEST, highest)
        is_changed = generator.random() < 0.5
        child.append(int(generator.integers(lowest, highest + 1)) if is_changed else min(old, highest))
    return tuple(child)


def _crossed(front: Sequence[Lengths], generator: np.random.Generator) -> Lengths:
    first, second = (front[place] for place in generator.integers(len(front), size=2))
    return tuple((a + b + 1) // 2 for a, b in zip(first, second, strict=True))


def _search_with_optuna(pool: _Pool, layers: int, algorithm: Algorithm, seed: int) -> None:
    """Lets a sampler choose what share of the tokens before it each layer keeps."""
    optuna: Any = require("optuna", extra="tune", purpose=f"method.search: {algorithm}")
    sampler = (
        optuna.samplers.TPESampler(seed=seed)
        if algorithm == "tpe"
        else optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, min(_FIRST_POPULATION, pool.evaluations)))
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for _ in range(pool.evaluations * _ATTEMPTS):
            if pool.is_spent:
                break
            trial = study.ask()
            ratios = [trial.suggest_float(f"layer_{i + 1}", _SMALLEST_RATIO, 1.0) for i in range(layers)]
            candidate = pool.add(_in_hundredths(np.cumprod(ratios)))
            study.tell(trial, [candidate.cost, candidate.metric])
    finally:
        optuna.logging.set_verbosity(verbosity)
