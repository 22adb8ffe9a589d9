import numpy as np
import pytest

from edgebert.decisions import most_received
from edgebert.errors import ConfigError
from edgebert.policies import DropPosition, make_policy

TOKENS = np.array([1, 3, 10, 30, 384])


@pytest.mark.parametrize(
    ("lengths", "layer", "expected"),
    [
        ("269,253,104", 2, [253] * 5),
        ("269,253,104", 6, [104] * 5),
        (7, 1, [7] * 5),
        ("0.5", 1, [2, 2, 5, 15, 192]),
        (0.1, 4, [2, 2, 2, 3, 39]),
        ("1.0, .25", 2, [2, 2, 3, 8, 96]),
        (None, 3, [1, 3, 10, 30, 384]),
    ],
)
def test_tokens_are_numbers_and_shares_are_of_each_rows_own(lengths: object, layer: int, expected: list[int]) -> None:
    policy = make_policy("lengths", {"lengths": lengths}, exit_layers=())

    assert policy.keep(DropPosition(layer, 6), TOKENS).tolist() == expected


@pytest.mark.parametrize(
    "lengths", ["", "64,x", "64,0.5", "0", "0.5,0.6", "32,64", "1.5", "0.0", -3, "1e-3", float("nan")]
)
def test_refuses_what_are_no_lengths(lengths: object) -> None:
    with pytest.raises(ConfigError, match="policy lengths: lengths: expected tokens for each layer"):
        make_policy("lengths", {"lengths": lengths}, exit_layers=())


def test_most_received_keeps_the_first_of_equal_tokens_protected_ones_and_no_padding() -> None:
    nothing, always = -np.inf, np.inf
    received = np.array([[1, 3, 2, 3, 3], [always, 1, 1, 9, nothing], [2, 1, nothing, nothing, nothing]], np.float32)

    kept = most_received(received, np.array([2, 3, 4]))

    assert kept.astype(int).tolist() == [[0, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 0]]
