import numpy as np
import pytest

from edgebert.errors import ConfigError
from edgebert.policies import ExitPosition, make_policy
from tests._replay import replay

EXITS = [{"probabilities": np.array([[p, 1 - p], [1 - p, p]])} for p in (0.9, 0.2, 0.6)]


@pytest.mark.parametrize(
    ("layer", "stopped", "labels"), [(2, 2, [0, 1]), (4, 4, [1, 0]), (6, 6, [0, 1]), (None, 6, [0, 1])]
)
def test_fixed_table(layer: int | None, stopped: int, labels: list[int]) -> None:
    policy = make_policy("fixed", {"layer": layer}, exit_layers=[2, 4, 6])

    scores, layers = replay(policy, EXITS, [2, 4, 6])

    assert layers.tolist() == [stopped, stopped]
    assert scores.argmax(axis=1).tolist() == labels


def test_fixed_reads_one_exit_only() -> None:
    policy = make_policy("fixed", {"layer": 4}, exit_layers=[2, 4, 6])

    reads = [policy.reads(ExitPosition(layer, left)) for layer, left in ((2, 2), (4, 1), (6, 0))]

    assert reads == [False, True, False]


@pytest.mark.parametrize("layer", [None, 2])
def test_fixed_needs_a_layer_that_the_model_can_stop_after(layer: int | None) -> None:
    with pytest.raises(ConfigError, match=r"^policy fixed: the model has no layer that it can stop after; use the pol"):
        make_policy("fixed", {"layer": layer}, exit_layers=[])
