import numpy as np
import pytest

from edgebert import frontier
from edgebert.measure import Measured


def _measured(name: str, macs: float, correct: list[int], rule: str = "never") -> Measured:
    n = len(correct)
    row = {"bundle": name, "policy": "default", "rule": rule, "method": "plain" if rule == "never" else "dact_bert"}
    return Measured(
        per_text=np.array(correct, bool),
        predictions=np.array(correct),
        targets=np.ones(n, np.int64),
        exit_layer=np.ones(n, np.int64),
        macs=np.full(n, macs),
        row=row,
    )


def test_compare_takes_mixture_at_equal_cost() -> None:
    cheap = _measured("cheap", 1.0, [1, 0, 0, 0] * 25)
    dear = _measured("dear", 3.0, [1, 1, 1, 0] * 25)
    method = _measured("method", 2.0, [1, 1, 1, 1] * 25, rule="halting")

    frontier.compare([cheap, method, dear], [])

    assert method.row["frontier"]["metric"] == pytest.approx(0.5)
    assert method.row["frontier"]["difference"] == pytest.approx(0.5)
    assert method.row["frontier"]["ci_low"] > 0
    assert "frontier" not in cheap.row


def test_compare_dominated_static_point_does_not_lower_the_frontier() -> None:
    points = [_measured("a", 1.0, [1, 1, 0, 0]), _measured("bad", 2.0, [0, 0, 0, 0]), _measured("b", 3.0, [1, 1, 1, 1])]
    method = _measured("method", 2.0, [1, 1, 1, 0], rule="halting")

    frontier.compare([*points, method], [])

    assert method.row["frontier"]["metric"] == pytest.approx(0.75)
    assert method.row["frontier"]["difference"] == pytest.approx(0.0)


@pytest.mark.parametrize("layers", [1, 2, 6, 12])
def test_layer_subsets_keep_the_last_layer(layers: int) -> None:
    subsets = frontier.layer_subsets(layers)

    assert all(subset[-1] == layers for subset in subsets)
    assert {len(subset) for subset in subsets} == set(range(1, layers))
    assert len(set(subsets)) == len(subsets)


def test_compare_with_fixed_exits_takes_mixture_at_equal_depth() -> None:
    exits = [_measured("model", 1.0, [1, 0, 0, 0] * 25), _measured("model", 9.0, [1, 1, 1, 0] * 25)]
    method = _measured("model", 100.0, [1, 1, 1, 1] * 25, rule="halting")
    for entry, layers in zip([*exits, method], (1.0, 3.0, 1.5), strict=True):
        entry.row["mean_layers"] = layers

    frontier.compare_with_fixed_exits([method], exits)

    assert method.row["fixed_exits"]["metric"] == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)
    assert method.row["fixed_exits"]["difference"] == pytest.approx(1 - 0.375)
