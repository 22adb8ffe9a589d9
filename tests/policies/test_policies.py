import re
from typing import Any

import numpy as np
import pytest

from edgebert.errors import ConfigError
from edgebert.policies import (
    ExitPosition,
    Outputs,
    knob_names,
    log_probabilities,
    make_policy,
    own_scores,
    safe_log,
)
from tests._replay import replay

EXITS: list[Outputs] = [
    {"probabilities": np.array([[0.6, 0.4], [0.3, 0.7]]), "halt": np.array([0.5, 0.5])},
    {"probabilities": np.array([[0.2, 0.8], [0.9, 0.1]]), "halt": np.array([0.5, 0.5])},
]


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("confidense", {}, "unknown policy 'confidense'. Did you mean 'confidence'?"),
        ("confidence", {"treshold": 0.9}, "policy confidence: unknown key 'treshold'. Did you mean 'threshold'?"),
        ("confidence", {"threshold": "0.9"}, "policy confidence: threshold: expected `float`, got `str`"),
        (
            "confidence",
            {"threshold": -0.1},
            "policy confidence: threshold: expected 0 to 1, or at most 2 to stop no row, got -0.1",
        ),
        (
            "confidence",
            {"threshold": float("nan")},
            "policy confidence: threshold: expected 0 to 1, or at most 2 to stop no row, got nan",
        ),
        ("halting", {"slack": -1}, "policy halting: slack: expected 0 or more, got -1.0"),
        ("halting", {"bound": "loose"}, "policy halting: bound: invalid enum value 'loose'"),
        ("halting", {"threshold": 0.9}, "policy halting: unknown key 'threshold'."),
        ("fixed", {"layer": 3}, "policy fixed: layer: the model can stop after layers 2, 4, got 3."),
        ("fixed", {"layer": 2.5}, "policy fixed: layer: expected `int | null`, got `float`"),
        ("never", {"threshold": 0.9}, "policy never: unknown key 'threshold'. Known: none."),
    ],
)
def test_make_policy_refused(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        make_policy(name, knobs, exit_layers=[2, 4])


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("confidence", ["threshold"]),
        ("entropy", ["threshold", "scale"]),
        ("halting", ["slack", "bound"]),
        ("patience", ["patience", "tolerance"]),
        ("fixed", ["layer"]),
        ("never", []),
    ],
)
def test_knob_names_of_a_policy(name: str, knobs: list[str]) -> None:
    assert knob_names(name) == knobs


def test_replay_last_exit_finishes_everyone() -> None:
    policy = make_policy("confidence", {"threshold": 1.5}, exit_layers=[2, 4])

    scores, layers = replay(policy, EXITS, [2, 4])

    assert layers.tolist() == [4, 4]
    assert scores == pytest.approx(np.log(EXITS[1]["probabilities"]))


def test_replay_each_row_keeps_its_own_answer() -> None:
    policy = make_policy("confidence", {"threshold": 0.65}, exit_layers=[2, 4])

    scores, layers = replay(policy, EXITS, [2, 4])

    assert layers.tolist() == [4, 2]
    assert np.exp(scores) == pytest.approx(np.array([[0.2, 0.8], [0.3, 0.7]]))


def test_replay_policy_that_reads_nothing() -> None:
    policy = make_policy("fixed", {"layer": 6}, exit_layers=[6])

    with pytest.raises(ConfigError, match="reads none of the model's exits"):
        replay(policy, EXITS, [2, 4])


def test_replay_equal_scores_give_the_lowest_label() -> None:
    exits = [{"logits": np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])}]

    scores, _ = replay(make_policy("never", {}, exit_layers=[1]), exits, [1])

    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_log_probabilities_of_logits() -> None:
    logits = np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32)

    scores = log_probabilities({"logits": logits})

    assert scores.dtype == np.float64
    assert scores == pytest.approx(np.array([[0.0, -1000.0], np.log([0.5, 0.5])]))


def test_log_probabilities_of_probabilities() -> None:
    scores = log_probabilities({"probabilities": np.array([[1.0, 0.0]], np.float32)})

    assert scores == pytest.approx(np.array([[0.0, np.log(1e-30)]]))


@pytest.mark.parametrize(("name", "knobs", "layer"), [("never", {}, 4), ("fixed", {"layer": 2}, 2)])
def test_single_values_are_answered_as_they_are(name: str, knobs: dict[str, Any], layer: int) -> None:
    exits = [{"logits": np.array([[1.5], [-2.0]], np.float32)}, {"logits": np.array([[0.5], [7.0]], np.float32)}]

    scores, layers = replay(make_policy(name, knobs, exit_layers=[2, 4]), exits, [2, 4])

    assert layers.tolist() == [layer, layer]
    assert scores.tolist() == exits[layer // 2 - 1]["logits"].tolist()


def test_own_scores_of_several_labels_are_log_probabilities() -> None:
    for outputs in ({"logits": np.array([[2.0, 1.0]])}, {"probabilities": np.array([[0.25, 0.75]])}):
        assert own_scores(outputs).tolist() == log_probabilities(outputs).tolist()


def test_confidence_of_a_single_value_refused() -> None:
    policy = make_policy("confidence", {}, exit_layers=[2, 4])

    with pytest.raises(ConfigError, match=r"^the policy needs probabilities, and a single value has none"):
        replay(policy, [{"logits": np.ones((2, 1))}] * 2, [2, 4])


def test_safe_log_of_nothing_is_finite() -> None:
    assert np.isfinite(safe_log(np.zeros(2, np.float32))).all()


def test_exit_position_counts_the_exits_after_it() -> None:
    seen: list[ExitPosition] = []
    policy = make_policy("never", {}, exit_layers=[2, 4])
    policy.reads = lambda position: not seen.append(position)  # type: ignore[method-assign,func-returns-value]

    replay(policy, EXITS, [2, 4])

    assert seen == [ExitPosition(2, 1), ExitPosition(4, 0)]


def test_a_rule_without_certainty_has_no_knobs_for_one() -> None:
    policy = make_policy("patience", {"patience": 1}, exit_layers=[1, 2])

    assert policy.certainty({"logits": np.zeros((2, 3))}) is None
    with pytest.raises(ConfigError, match=r"^policy patience: does not stop by how sure an exit is\.$"):
        policy.stop_above(0.5)
