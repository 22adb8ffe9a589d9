import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebert.errors import ConfigError
from edgebert.policies import Outputs, make_policy
from tests._replay import replay


def _labels(*rows: str) -> list[Outputs]:
    """Exits whose argmax runs through each row's digits."""
    digits = np.array([[int(digit) for digit in row] for row in rows])
    return [{"probabilities": np.eye(3)[column] * 0.4 + 0.2} for column in digits.T]


@pytest.mark.parametrize(
    ("patience", "layers"),
    [(1, [2, 3, 3, 5]), (2, [3, 4, 5, 5]), (3, [4, 5, 5, 5]), (4, [5, 5, 5, 5]), (9, [5, 5, 5, 5])],
)
def test_patience_table(patience: int, layers: list[int]) -> None:
    exits = _labels("00000", "01111", "12212", "01012")
    exits[4]["probabilities"][2] = [0.2, 0.2, 0.6]

    policy = make_policy("patience", {"patience": patience}, exit_layers=range(1, 6))
    scores, found = replay(policy, exits, range(1, 6))

    assert found.tolist() == layers
    stopped = [exits[layer - 1]["probabilities"][row] for row, layer in enumerate(found)]
    assert np.exp(scores) == pytest.approx(np.stack(stopped))


def test_patience_starts_again_after_a_disagreement() -> None:
    policy = make_policy("patience", {"patience": 2}, exit_layers=range(1, 8))

    _, found = replay(policy, _labels("0011000", "0100110"), range(1, 8))

    assert found.tolist() == [7, 7]


def test_patience_equal_probabilities_mean_the_first_label() -> None:
    exits = [{"logits": np.array([[2.0, 2.0]])}, {"logits": np.array([[3.0, 1.0]])}, {"logits": np.zeros((1, 2))}]

    _, found = replay(make_policy("patience", {"patience": 2}, exit_layers=[1, 2, 3]), exits, [1, 2, 3])
    assert found.tolist() == [3]

    _, found = replay(make_policy("patience", {"patience": 1}, exit_layers=[1, 2, 3]), exits, [1, 2, 3])
    assert found.tolist() == [2]


@pytest.mark.parametrize(("tolerance", "layers"), [(0.25, [3, 3]), (0.26, [2, 3]), (1.0, [2, 2])])
def test_patience_of_values_that_differ_by_the_tolerance(tolerance: float, layers: list[int]) -> None:
    exits = [{"logits": np.array(values)[:, None]} for values in ([1.0, 4.0], [1.25, 3.5], [5.0, 6.0])]

    policy = make_policy("patience", {"patience": 1, "tolerance": tolerance}, exit_layers=[1, 2, 3])
    scores, found = replay(policy, exits, [1, 2, 3])

    assert found.tolist() == layers
    # The raw values, no probabilities of a single label.
    assert scores.tolist() == [[exits[layer - 1]["logits"][row, 0]] for row, layer in enumerate(layers)]


def test_patience_of_values_compares_neighbours_only() -> None:
    exits = [{"logits": np.array([[0.09 * n]])} for n in range(6)]

    policy = make_policy("patience", {"patience": 3}, exit_layers=range(1, 7))

    assert replay(policy, exits, range(1, 7))[1].tolist() == [4]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), labels=st.integers(1, 3), patience=st.integers(1, 5))
def test_patience_equals_a_plain_loop_over_rows(seed: int, labels: int, patience: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 1, (6, 10, labels))
    policy = make_policy("patience", {"patience": patience, "tolerance": 0.7}, exit_layers=range(1, 7))

    scores, layers = replay(policy, [{"logits": given} for given in logits], range(1, 7))

    for row in range(10):
        counter, before = 0, None
        for layer in range(6):
            given = logits[layer, row]
            if before is not None:
                same = abs(given[0] - before[0]) < 0.7 if labels == 1 else np.argmax(given) == np.argmax(before)
                counter = counter + 1 if same else 0
            before = given
            if counter == patience:
                break
        assert layers[row] == layer + 1
        answer = given if labels == 1 else given - np.log(np.exp(given).sum())
        assert scores[row] == pytest.approx(answer)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"patience": 0}, "policy patience: patience: expected 1 or more, got 0"),
        ({"patience": 1.5}, "policy patience: patience: expected `int`, got `float`"),
        ({"tolerance": -1}, "policy patience: tolerance: expected 0 or more, got -1.0"),
    ],
)
def test_patience_refused(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_policy("patience", knobs, exit_layers=[1, 2])
