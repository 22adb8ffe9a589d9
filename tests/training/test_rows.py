import numpy as np
import pytest

from edgebert.data import Example, texts_of
from edgebert.text import TextEncoder
from edgebert.training.rows import LengthGroupedSampler, Rows

LENGTHS = np.random.default_rng(0).integers(3, 40, 333).tolist()


@pytest.fixture
def rows(tiny_tokenizer: bytes) -> Rows:
    text = TextEncoder(tiny_tokenizer, max_length=20, pad_token_id=0)
    return Rows(text.encode(["a b c d", "a", ("a", "b")]), np.array([1, 0, 1]), text)


def _order(sampler: LengthGroupedSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_rows_item_is_its_place(rows: Rows) -> None:
    assert len(rows) == 3
    assert [rows[place] for place in range(3)] == [0, 1, 2]


def test_rows_collate_values(rows: Rows) -> None:
    batch = rows.collate([2, 1])

    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_rows_batches_give_every_row_once_by_length(rows: Rows) -> None:
    batches = list(rows.batches(2))

    assert [places.tolist() for places, _ in batches] == [[1, 2], [0]]
    assert [batch.labels.tolist() for _, batch in batches if batch.labels is not None] == [[0, 1], [1]]


def test_texts_of_singles_and_pairs() -> None:
    assert texts_of([Example("a"), Example("b", "c", "x")]) == ["a", ("b", "c")]


def test_sampler_is_a_permutation() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 16, seed=3)

    assert len(sampler) == 333
    assert sorted(sampler) == list(range(333))


def test_sampler_same_seed_and_epoch_same_order() -> None:
    first, second = (LengthGroupedSampler(LENGTHS, 16, seed=3) for _ in range(2))

    assert [_order(first, epoch) for epoch in (0, 1, 0)] == [_order(second, epoch) for epoch in (0, 1, 0)]
    assert _order(first, 1) == _order(first, 1)


def test_sampler_epochs_and_seeds_differ() -> None:
    orders = [
        _order(LengthGroupedSampler(LENGTHS, 16, seed=seed), epoch) for seed, epoch in ((3, 0), (3, 1), (3, 2), (8, 0))
    ]

    assert len({tuple(order) for order in orders}) == 4


def test_sampler_puts_like_lengths_together() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 16, seed=3))

    lengths = np.array([LENGTHS[place] for place in order[:320]]).reshape(20, 16)
    padded = (lengths.max(axis=1) * 16).sum() / lengths.sum()
    assert padded < 1.2


def test_sampler_batches_come_in_no_order_of_length() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 16, seed=3))

    longest = [max(LENGTHS[place] for place in order[start : start + 16]) for start in range(0, 320, 16)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
