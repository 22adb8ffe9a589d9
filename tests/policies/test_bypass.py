import re
from typing import Any

import numpy as np
import pytest

from edgebert.decisions import Decision, follow
from edgebert.errors import ConfigError
from edgebert.policies import GatePosition, make_policy

INCLUDE = np.array([[0.9, 0.1, 0.6], [0.5, 0.5, 0.5], [0.49, 0.2, 0.3], [0.1, 0.3, 0.3], [0.0, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (0.0, [[1, 1, 1]] * 5),
        (0.5, [[1, 0, 1], [1, 1, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]]),
        (0.3, [[1, 0, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 0, 0]]),
        (1.0, [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]),
    ],
)
def test_bypass_plan_table(delta: float, expected: list[list[int]]) -> None:
    policy = make_policy("bypass", {"delta": delta}, exit_layers=[1, 2, 3])

    assert policy.plan({"include": INCLUDE}, 3).astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (0.0, [[1, 1, 1]] * 5),
        (0.5, [[1, 0, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]]),
        (0.3, [[1, 0, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 0, 1]]),
        (1.0, [[0, 0, 1]] * 5),
    ],
)
def test_bypass_gate_table(delta: float, expected: list[list[int]]) -> None:
    policy = make_policy("bypass", {"delta": delta}, exit_layers=[1, 2, 3])
    gates = [Decision("gate", layer, {"include": INCLUDE[:, layer - 1]}) for layer in (1, 2, 3)]

    followed = follow(policy, [*gates, Decision("head", 3, {"logits": np.zeros((5, 2))})], 3)

    assert followed.path.astype(int).tolist() == expected
    assert followed.exit_layer.tolist() == [3] * 5


@pytest.mark.parametrize(
    ("position", "executed", "wanted"),
    [
        (GatePosition(3, 0), [0, 1, 2], [True, False, False]),
        (GatePosition(2, 1), [0, 1, 2], [False, False, False]),
    ],
)
def test_bypass_forces_the_last_layer_of_an_empty_path_only(
    position: GatePosition, executed: list[int], wanted: list[bool]
) -> None:
    policy = make_policy("bypass", {}, exit_layers=[1, 2, 3])

    assert policy.gate({"include": np.zeros(3)}, position, np.array(executed)).tolist() == wanted


def test_bypass_keeps_what_it_is_given() -> None:
    policy = make_policy("bypass", {"delta": 0.95}, exit_layers=[1, 2, 3])
    include = INCLUDE.copy()

    policy.plan({"include": include}, 3)

    assert np.array_equal(include, INCLUDE)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"delta": 1.1}, "policy bypass: delta: expected 0 to 1, got 1.1"),
        ({"delta": -0.1}, "policy bypass: delta: expected 0 to 1, got -0.1"),
        ({"delta": float("nan")}, "policy bypass: delta: expected 0 to 1, got nan"),
    ],
)
def test_bypass_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        make_policy("bypass", knobs, exit_layers=[1, 2])
