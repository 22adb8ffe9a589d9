from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.arguments import (
    check_count,
    check_name,
    check_path,
    check_positive,
    items_of,
    one_or_more,
    one_or_more_counts,
)
from edgebert.errors import ConfigError, DataError


@pytest.mark.parametrize("value", [1, 7, np.int64(7), 10**30])
def test_check_count_gives_an_int(value: Any) -> None:
    assert check_count("n", value) == int(value)
    assert type(check_count("n", value)) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "n: expected 1 or more, got 0."),
        (9, "n: expected at most 8, got 9."),
        (10**30, "n: expected at most 8, got int of 100 bits."),
        (True, "n: expected a whole number of 1 to 8, got bool True."),
        (np.bool_(True), "n: expected a whole number of 1 to 8, got bool_."),
        (2.0, "n: expected a whole number of 1 to 8, got float 2.0."),
        ("3", "n: expected a whole number of 1 to 8, got str '3'."),
        (None, "n: expected a whole number of 1 to 8, got None."),
    ],
)
def test_check_count_refuses(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_count("n", value, most=8)

    assert str(raised.value).replace("got bool.", "got bool_.") == message


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(3)])
def test_check_positive_gives_a_float(value: Any) -> None:
    assert check_positive("x", value) == float(value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", None, 1j, 10**400, [1]])
def test_check_positive_refuses(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x: expected a number of more than 0, got "):
        check_positive("x", value)


def test_check_name_and_path() -> None:
    assert check_name("policy", "never") == "never"
    assert check_path("data", "a/b") == Path("a/b")
    with pytest.raises(ConfigError, match=r"^policy: expected a name, got int 3\.$"):
        check_name("policy", 3)
    with pytest.raises(DataError, match=r"^data: expected a path, got bytes b'a'\.$"):
        check_path("data", b"a")


@pytest.mark.parametrize("values", [["a"], ("a",), (text for text in "a"), np.array(["a"]), {"a": 1}.keys()])
def test_items_of_gives_them_in_order(values: Any) -> None:
    assert list(items_of("texts", values)) == ["a"]


@pytest.mark.parametrize("values", ["a", b"a", {"a": 1}, {"a"}, None, 3, np.array("a"), str])
def test_items_of_refuses(values: Any) -> None:
    with pytest.raises(DataError, match=r"^texts: expected a list, got "):
        items_of("texts", values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a/b", ["a/b"]), (Path("a"), [Path("a")]), (("a", "b"), ["a", "b"]), ((), [])],
)
def test_one_or_more(given: Any, expected: list[Any]) -> None:
    assert one_or_more("data", given) == expected


@pytest.mark.parametrize(("given", "wrong"), [(3, "int 3"), (["a", 3], "int 3"), ({"a": 1}, "dict"), (None, "None")])
def test_one_or_more_refuses(given: Any, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"^data: expected a name or a path, or a list of them, got {wrong}"):
        one_or_more("data", given)


@pytest.mark.parametrize(("given", "expected"), [(2, [2]), ([1, np.int64(2)], [1, 2]), ((3,), [3])])
def test_one_or_more_counts(given: Any, expected: list[int]) -> None:
    assert one_or_more_counts("threads", given) == expected


@pytest.mark.parametrize("given", ["2", [], [0], 0, None, [1.5]])
def test_one_or_more_counts_refuses(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^threads: expected "):
        one_or_more_counts("threads", given)
