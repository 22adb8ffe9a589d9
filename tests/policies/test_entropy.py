import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebert.errors import ConfigError
from edgebert.policies import make_policy
from tests._replay import replay

# Each row's largest probability at the exits of layers 1, 2 and 3.
EXITS = [
    {"probabilities": np.array([[0.50, 0.50], [0.75, 0.25], [1.00, 0.00]])},
    {"probabilities": np.array([[0.10, 0.90], [0.00, 1.00], [0.45, 0.55]])},
    {"probabilities": np.array([[1.00, 0.00], [0.50, 0.50], [0.30, 0.70]])},
]
QUARTER = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
TENTH = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))


@pytest.mark.parametrize(
    ("nats", "layers", "labels"),
    [
        (0.0, [3, 3, 3], [0, 0, 1]),
        (1e-9, [3, 2, 1], [0, 1, 0]),
        (TENTH + 1e-9, [2, 2, 1], [1, 1, 0]),
        (QUARTER - 1e-9, [2, 2, 1], [1, 1, 0]),
        (QUARTER + 1e-9, [2, 1, 1], [1, 0, 0]),
        (math.log(2) - 1e-9, [2, 1, 1], [1, 0, 0]),
        (math.log(2) + 1e-9, [1, 1, 1], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize(("scale", "unit"), [("nats", 1.0), ("normalised", math.log(2))])
def test_entropy_table(scale: str, unit: float, nats: float, layers: list[int], labels: list[int]) -> None:
    policy = make_policy("entropy", {"threshold": nats / unit, "scale": scale}, exit_layers=[1, 2, 3])

    scores, found = replay(policy, EXITS, [1, 2, 3])

    assert found.tolist() == layers
    assert scores.argmax(axis=1).tolist() == labels


@pytest.mark.parametrize(("scale", "largest"), [("nats", math.log(4)), ("normalised", 1.0)])
def test_entropy_equal_to_the_threshold_carries_on(scale: str, largest: float) -> None:
    exits = [{"probabilities": np.full((1, 4), 0.25)}] * 2
    found = []
    for threshold in (largest, float(np.nextafter(largest, 2))):
        policy = make_policy("entropy", {"threshold": threshold, "scale": scale}, exit_layers=[1, 2])
        found.append(replay(policy, exits, [1, 2])[1].tolist())

    assert found == [[2], [1]]


def test_entropy_of_certainty_is_nothing() -> None:
    exits = [{"probabilities": np.array([[0.0, 1.0, 0.0]])}] * 2

    stays = make_policy("entropy", {"threshold": 0.0}, exit_layers=[1, 2])
    stops = make_policy("entropy", {"threshold": 1e-12}, exit_layers=[1, 2])

    assert replay(stays, exits, [1, 2])[1].tolist() == [2]
    assert replay(stops, exits, [1, 2])[1].tolist() == [1]


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    labels=st.integers(2, 5),
    threshold=st.floats(0.0, 1.2),
    scale=st.sampled_from(["normalised", "nats"]),
)
def test_entropy_equals_a_plain_loop_over_rows(seed: int, labels: int, threshold: float, scale: str) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (4, 10, labels)).astype(np.float32)
    policy = make_policy("entropy", {"threshold": threshold, "scale": scale}, exit_layers=[1, 2, 3, 4])

    scores, layers = replay(policy, [{"logits": given} for given in logits], [1, 2, 3, 4])

    for row in range(10):
        for layer in range(4):
            powers = [math.exp(x - float(logits[layer, row].max())) for x in logits[layer, row].tolist()]
            chances = [power / sum(powers) for power in powers]
            entropy = -sum(p * math.log(p) for p in chances if p > 0)
            if scale == "normalised":
                entropy /= math.log(labels)
            if entropy < threshold or layer == 3:
                break
        assert layers[row] == layer + 1
        assert np.exp(scores[row]) == pytest.approx(chances, abs=1e-12)


def test_entropy_of_a_single_value_refused() -> None:
    policy = make_policy("entropy", {}, exit_layers=[1, 2])

    with pytest.raises(ConfigError, match=r"^the policy needs probabilities, and a single value has none; use"):
        replay(policy, [{"logits": np.ones((2, 1))}] * 2, [1, 2])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"threshold": -0.1}, "policy entropy: threshold: expected 0 or more, got -0.1"),
        ({"scale": "bits"}, "policy entropy: scale: invalid enum value 'bits'"),
    ],
)
def test_entropy_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_policy("entropy", knobs, exit_layers=[1, 2])


@pytest.mark.parametrize("scale", ["normalised", "nats"])
def test_entropy_stops_above_what_it_is_told(scale: str) -> None:
    exits = {"logits": np.random.default_rng(0).normal(0, 3, (200, 4)).astype(np.float32)}
    policy = make_policy("entropy", {"scale": scale}, exit_layers=[1, 2])
    certainty = policy.certainty(exits)
    assert certainty is not None

    for border in certainty[:20]:
        knobs = {"scale": scale, **policy.stop_above(float(border))}
        _, layers = replay(make_policy("entropy", knobs, exit_layers=[1, 2]), [exits, exits], [1, 2])

        assert np.array_equal(layers == 1, certainty > border)
