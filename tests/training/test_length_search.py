"""The search alone, on a cost and a metric in closed form."""

import itertools
import sys
from typing import Any

import pytest

from edgebert.errors import MissingExtraError
from edgebert.training.length_search import (
    ALL,
    FEWEST,
    Candidate,
    Lengths,
    first_population,
    pareto_front,
    search_lengths,
)


class _Scale:
    """Costs what goes through; answers well as long as layer l passes on at least its need."""

    def __init__(self, *needs: int) -> None:
        self.needs = needs
        self.asked: list[Lengths] = []

    def __call__(self, lengths: Lengths) -> tuple[float, float]:
        self.asked.append(lengths)
        missing = sum(max(0, need - length) for need, length in zip(self.needs, lengths, strict=True))
        return sum(lengths) / (ALL * len(lengths)), 1.0 - missing / 100


@pytest.mark.parametrize("algorithm", ["evolution", "tpe", "nsga2"])
def test_search_finds_cheaper_lengths_that_answer_as_well(algorithm: Any) -> None:
    scale = _Scale(70, 40, 10)

    front = search_lengths(scale, [0.2] * 3, algorithm=algorithm, evaluations=150, seed=0)

    assert len(scale.asked) == len(set(scale.asked)) <= 150
    assert scale.asked[0] == (ALL, ALL, ALL)
    assert all(ALL >= before >= after >= FEWEST for asked in scale.asked for before, after in itertools.pairwise(asked))
    assert front[-1].metric == 1.0
    assert front[-1].cost < 0.55
    for cheaper, better in itertools.pairwise(front):
        assert cheaper.cost < better.cost
        assert cheaper.metric < better.metric


@pytest.mark.parametrize("algorithm", ["evolution", "tpe", "nsga2"])
def test_search_repeats_itself(algorithm: Any) -> None:
    first, second, other = _Scale(70, 40), _Scale(70, 40), _Scale(70, 40)

    search_lengths(first, [0.2] * 2, algorithm=algorithm, evaluations=30, seed=1)
    search_lengths(second, [0.2] * 2, algorithm=algorithm, evaluations=30, seed=1)
    search_lengths(other, [0.2] * 2, algorithm=algorithm, evaluations=30, seed=2)

    assert first.asked == second.asked
    assert first.asked != other.asked


@pytest.mark.parametrize("algorithm", ["evolution", "tpe", "nsga2"])
def test_search_with_one_evaluation_measures_all_tokens(algorithm: Any) -> None:
    scale = _Scale(50)

    front = search_lengths(scale, [0.2], algorithm=algorithm, evaluations=1, seed=0)

    assert [candidate.lengths for candidate in front] == [(ALL,)]


def test_evolution_ends_when_there_is_nothing_new_left() -> None:
    scale = _Scale(50)

    search_lengths(scale, [0.2], algorithm="evolution", evaluations=100_000, seed=0)

    assert len(scale.asked) <= ALL - FEWEST + 1


@pytest.mark.parametrize(
    ("largest_drop", "cheapest"), [(0.2, (80, 64, 51, 41, 33, 26)), (0.5, (50, 25, 12, 6, 3, 2)), (0.0, (100,) * 6)]
)
def test_first_population_spans_from_the_largest_drop_to_all_tokens(
    largest_drop: float, cheapest: tuple[int, ...]
) -> None:
    lengths = first_population([largest_drop] * 6, 5)

    assert lengths[0] == cheapest
    assert lengths[-1] == (100,) * 6
    steps = [sum(after) - sum(before) for before, after in itertools.pairwise(lengths)]
    assert max(steps) - min(steps) <= 3


@pytest.mark.parametrize(
    ("largest_drops", "cheapest"), [([0.6, 0.6, 0.6], (40, 16, 6)), ([0.0, 0.4, 0.8], (100, 60, 12))]
)
def test_evolution_starts_from_what_training_went_down_to(
    largest_drops: list[float], cheapest: tuple[int, ...]
) -> None:
    scale = _Scale(50, 40, 30)

    search_lengths(scale, largest_drops, algorithm="evolution", evaluations=6, seed=0)

    assert cheapest in scale.asked


def test_front_has_no_candidate_that_another_one_beats() -> None:
    def candidate(cost: float, metric: float) -> Candidate:
        return Candidate(lengths=(round(100 * cost),), cost=cost, metric=metric)

    front = pareto_front([candidate(*pair) for pair in ((0.5, 0.8), (0.2, 0.7), (0.6, 0.8), (0.5, 0.6), (1.0, 0.9))])

    assert [(found.cost, found.metric) for found in front] == [(0.2, 0.7), (0.5, 0.8), (1.0, 0.9)]


def test_samplers_need_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(MissingExtraError, match=r"method\.search: tpe needs optuna.*edgebert\[tune\]"):
        search_lengths(_Scale(50), [0.2], algorithm="tpe", evaluations=3, seed=0)
