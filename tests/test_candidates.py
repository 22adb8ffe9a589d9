import itertools
import math
from typing import Any

import pytest

from edgebert import registry
from edgebert.candidates import Candidate, cheapest_that_keeps, grid_of, pareto_front, series_of, subdivide


def _candidates(*points: tuple[float, float]) -> list[Candidate]:
    return [
        Candidate(policy="p", knobs={"number": number}, metric=metric, mean_layers=1.0, cost_ratio=cost)
        for number, (cost, metric) in enumerate(points)
    ]


def test_grid_of_the_rule_keeps_its_other_knobs() -> None:
    rule: tuple[str, Any] = ("entropy", {"threshold": 0.3, "scale": "nats"})

    assert {setting["scale"] for setting in grid_of("entropy", rule)} == {"nats"}
    assert grid_of("confidence", rule)[0] == {"threshold": 0.999}
    assert grid_of("fixed", rule) == []


@pytest.mark.parametrize("policy", registry.names("edgebert.policies"))
def test_series_hold_the_whole_grid_and_differ_in_one_knob(policy: str) -> None:
    rule: tuple[str, Any] = ("never", {})
    series = series_of(policy, rule)

    assert [knobs for _, settings in series for knobs in settings] == grid_of(policy, rule)
    for knob, settings in series:
        for here, there in itertools.pairwise(settings):
            assert {name for name in here if here[name] != there[name]} == {knob}


def test_subdivide_leaves_the_other_knobs() -> None:
    settings: list[Any] = [{"threshold": 0.9, "scale": "nats"}, {"threshold": 0.8, "scale": "nats"}]

    assert subdivide("threshold", settings, 2) == [settings[0], {"threshold": 0.85, "scale": "nats"}, settings[1]]


def test_cheapest_that_keeps() -> None:
    found = _candidates((0.9, 0.95), (0.5, 0.9), (0.4, 0.89), (0.5, 0.91))

    assert cheapest_that_keeps(found, 0.9) is found[1]
    assert cheapest_that_keeps(found, 0.96) is None
    assert cheapest_that_keeps(_candidates((0.1, math.nan)), 0.0) is None


@pytest.mark.parametrize("right", range(21, 1501, 7))
def test_a_loss_that_is_just_allowed_is_allowed(right: int) -> None:
    """15 of 1,500 rows are one point, whatever floating point makes of the two shares."""
    full, less = right / 1500, (right - 15) / 1500

    kept = cheapest_that_keeps(_candidates((1.0, full), (0.5, less), (0.2, less - 1 / 1500)), full - 1.0 / 100)

    assert kept is not None
    assert kept.cost_ratio == 0.5


def test_pareto_front() -> None:
    found = _candidates((0.9, 0.95), (0.5, 0.9), (0.6, 0.9), (0.5, 0.8), (0.2, 0.7), (1.0, 0.94))

    assert pareto_front(found) == [found[4], found[1], found[0]]
