import numpy as np
import pytest

from edgebert.errors import ConfigError
from edgebert.policies import make_policy
from tests._replay import replay

# Largest probability of each row at the exits of layers 1, 2 and 3, and the label that has it.
EXITS = [
    {"probabilities": np.array([[0.50, 0.50], [0.75, 0.25], [0.60, 0.40]])},
    {"probabilities": np.array([[0.25, 0.75], [0.00, 1.00], [0.45, 0.55]])},
    {"probabilities": np.array([[1.00, 0.00], [0.50, 0.50], [0.30, 0.70]])},
]


@pytest.mark.parametrize(
    ("threshold", "layers", "labels"),
    [
        (0.0, [1, 1, 1], [0, 0, 0]),
        (0.5, [1, 1, 1], [0, 0, 0]),
        (0.51, [2, 1, 1], [1, 0, 0]),
        (0.75, [2, 1, 3], [1, 0, 1]),
        (0.76, [3, 2, 3], [0, 1, 1]),
        (1.0, [3, 2, 3], [0, 1, 1]),
        (1.1, [3, 3, 3], [0, 0, 1]),
    ],
)
def test_confidence_table(threshold: float, layers: list[int], labels: list[int]) -> None:
    policy = make_policy("confidence", {"threshold": threshold}, exit_layers=[1, 2, 3])

    scores, found = replay(policy, EXITS, [1, 2, 3])

    assert found.tolist() == layers
    assert scores.argmax(axis=1).tolist() == labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confidence_equal_to_the_threshold_stops(dtype: type) -> None:
    probabilities = np.arange(0.5, 1.0, 1 / 256).astype(dtype)
    exits = [{"probabilities": np.stack([p, 1 - p])[None]} for p in probabilities]

    layers = [
        replay(make_policy("confidence", {"threshold": float(p)}, exit_layers=[1, 2]), [e, e], [1, 2])[1][0]
        for p, e in zip(probabilities, exits, strict=True)
    ]

    assert layers == [1] * len(probabilities)


def test_confidence_reads_logits_as_probabilities() -> None:
    exits = [{"logits": np.log([[0.8, 0.2], [0.7, 0.3]]) + 5.0}] * 2

    _, layers = replay(make_policy("confidence", {"threshold": 0.75}, exit_layers=[1, 2]), exits, [1, 2])

    assert layers.tolist() == [1, 2]


def test_confidence_stops_above_what_it_is_told() -> None:
    largest = np.random.default_rng(0).uniform(0.5, 1.0, 200).astype(np.float32)
    exits = {"probabilities": np.stack([largest, 1 - largest], axis=1)}
    policy = make_policy("confidence", {}, exit_layers=[1, 2])

    for border in (*largest[:20], np.float32(1.0)):
        knobs = policy.stop_above(float(border))
        _, layers = replay(make_policy("confidence", knobs, exit_layers=[1, 2]), [exits, exits], [1, 2])

        assert np.array_equal(policy.certainty(exits), largest)
        assert np.array_equal(layers == 1, largest > border)


def test_a_percentage_is_refused() -> None:
    with pytest.raises(ConfigError, match="threshold: expected 0 to 1, or at most 2 to stop no row, got 90"):
        make_policy("confidence", {"threshold": 90.0}, exit_layers=[1, 2])
