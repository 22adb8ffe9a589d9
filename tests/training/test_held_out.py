import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebert.errors import DataError
from edgebert.training.held_out import distinct_texts, hold_out, whole_texts

PAD, CLS, SEP = 0, 2, 3


def test_the_first_part_is_the_same_whatever_comes_after() -> None:
    groups = np.arange(50)

    alone, rest = hold_out(groups, [10])
    first, second, others = hold_out(groups, [10, 15])

    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(np.concatenate([second, others]), rest)
    assert sorted([*first, *second, *others]) == list(range(50))
    assert (len(first), len(second)) == (10, 15)
    assert list(first) != list(range(10))
    assert [part.tolist() for part in hold_out(groups, [10, 0])] == [alone.tolist(), [], rest.tolist()]


@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    first=st.integers(0, 20),
    second=st.integers(0, 20),
)
def test_a_group_is_never_split(groups: list[int], first: int, second: int) -> None:
    largest = max(groups.count(group) for group in groups)

    if first + second > len(groups) - 2 * largest:
        with contextlib.suppress(DataError):
            hold_out(np.array(groups), [first, second])
        return
    parts = hold_out(np.array(groups), [first, second])

    held_out, calibration, rest = ({groups[place] for place in part} for part in parts)
    assert sorted(place for part in parts for place in part) == list(range(len(groups)))
    assert not held_out & calibration | held_out & rest | calibration & rest
    assert not first or first <= len(parts[0]) < first + largest
    assert not second or second <= len(parts[1]) < second + largest
    assert rest


def test_everything_refused() -> None:
    with pytest.raises(DataError, match=r"^train: 3 examples in 1 groups, all of which would be held out\.$"):
        hold_out(np.zeros(3, np.int64), [1])


def test_distinct_texts_are_held_out_with_all_their_copies() -> None:
    rows = [[CLS, 10, SEP], [CLS, 10, 11, SEP], [CLS, 10, SEP], [CLS, 11, SEP], [CLS, 10, 11, SEP], [CLS, 12, SEP]]

    groups = distinct_texts(rows)

    assert groups.tolist() == [0, 1, 0, 3, 1, 5]
    for count in (1, 2, 3):
        held_out, rest = hold_out(groups, [count])
        assert not {tuple(rows[place]) for place in held_out} & {tuple(rows[place]) for place in rest}


def test_whole_texts_and_their_parts() -> None:
    rows = [
        [CLS, 10, 11, 12, 13, SEP],
        [CLS, 11, 12, SEP],  # a part of the first alone
        [CLS, 12, SEP, PAD],  # a part of the first and of the fifth
        [CLS, 11, 13, SEP],  # the same tokens as the first, but not in a row
        [CLS, 20, 12, 21, SEP],
        [CLS, 20, 12, 21, SEP],  # the same again
        [CLS, SEP],  # a part of all
        [CLS, 110, SEP],  # no part of anything, though 1 and 10 are near
    ]

    groups, is_whole = whole_texts(rows, {PAD, CLS, SEP})

    np.testing.assert_array_equal(is_whole, [True, False, False, True, True, False, False, True])
    assert groups[1] == groups[0]
    assert groups[5] == groups[4]
    assert len(set(groups[[0, 2, 3, 4, 6, 7]])) == 6


@given(st.lists(st.lists(st.integers(10, 14), max_size=6), min_size=1, max_size=30))
def test_whole_texts_as_brute_force_finds_them(rows: list[list[int]]) -> None:
    groups, is_whole = whole_texts(rows, ())

    def holds(text: list[int], part: list[int]) -> bool:
        return any(text[start : start + len(part)] == part for start in range(len(text) - len(part) + 1))

    for place, row in enumerate(rows):
        owners = [
            other
            for other, text in enumerate(rows)
            if is_whole[other] and other != place and holds(text, row) and (text != row or other < place)
        ]
        assert is_whole[place] == (not owners)
        if len(owners) == 1:
            assert groups[place] == owners[0]


def test_too_few_that_may_be_held_out_are_refused() -> None:
    may_be = np.arange(10) < 5

    with pytest.raises(DataError, match="5 examples may be held out, of which 4 and 3 are asked for"):
        hold_out(np.arange(10), (4, 3), may_be_held_out=may_be)
    assert [len(part) for part in hold_out(np.arange(10), (3, 2), may_be_held_out=may_be)] == [3, 2, 5]


def test_parts_of_what_is_held_out_are_nowhere() -> None:
    groups = np.repeat(np.arange(20), 3)
    is_whole = np.arange(60) % 3 == 0

    tuning, calibration, rest = hold_out(groups, [5, 4], may_be_held_out=is_whole)

    assert (len(tuning), len(calibration), len(rest)) == (5, 4, 60 - 3 * 9)
    assert is_whole[tuning].all()
    assert is_whole[calibration].all()
    assert not set(groups[rest]) & set(groups[[*tuning, *calibration]])
