"""How often a fault is tried: a few seeded times in `make test`, as often as it takes in `make faults`."""

from collections.abc import Callable

import pytest

Rounds = Callable[[int, int], int]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Returns the first of two counts in `make test`, the second with `--full`."""
    is_full = bool(request.config.getoption("full"))
    return lambda short, full: full if is_full else short
