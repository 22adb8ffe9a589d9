import numpy as np
import pytest

from edgebert.policies import ExitPosition, Outputs, make_policy
from tests._replay import replay

EXITS: list[Outputs] = [
    {"probabilities": np.array([[0.9, 0.1], [1.0, 0.0]]), "halt": np.array([0.25, 0.0])},
    {"probabilities": np.array([[0.2, 0.8], [0.0, 1.0]]), "halt": np.array([0.5, 0.5])},
    {"probabilities": np.array([[0.4, 0.6], [0.3, 0.7]]), "halt": np.array([0.1, 0.1])},
]


def test_never_gives_the_own_rules_full_depth_answer() -> None:
    policy = make_policy("never", {}, exit_layers=[1, 2, 3], rule=("halting", {}))

    scores, layers = replay(policy, EXITS, [1, 2, 3])

    # p_1 = .25 and p_2 = .125, so that row 0 has a_2 = .25 y_2 + .75 y_1 and a_3 = .125 y_3 + .875 a_2.
    assert layers.tolist() == [3, 3]
    assert np.exp(scores) == pytest.approx(np.array([[0.684375, 0.315625], [1.0, 0.0]]))


@pytest.mark.parametrize("rule", [None, ("never", {}), ("confidence", {"threshold": 0.0})])
def test_never_without_a_mixing_rule_gives_the_last_exits_answer(rule: tuple[str, dict[str, float]] | None) -> None:
    policy = make_policy("never", {}, exit_layers=[1, 2, 3], rule=rule)

    scores, layers = replay(policy, EXITS, [1, 2, 3])

    assert layers.tolist() == [3, 3]
    assert np.exp(scores) == pytest.approx(EXITS[2]["probabilities"])


def test_never_reads_every_exit() -> None:
    policy = make_policy("never", {}, exit_layers=[1, 2], rule=("fixed", {"layer": 2}))

    assert [policy.reads(ExitPosition(1, 1)), policy.reads(ExitPosition(2, 0))] == [True, True]
