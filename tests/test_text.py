import json
import operator
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgebert.errors import BundleError, DataError
from edgebert.text import Text, TextEncoder, batches, join_rows


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: bytes) -> TextEncoder:
    return TextEncoder(tiny_tokenizer, max_length=10, pad_token_id=0)


def _tokens(encoder: TextEncoder, tiny_tokenizer: bytes, ids: list[int]) -> str:
    return " ".join(Tokenizer.from_buffer(tiny_tokenizer).id_to_token(i) for i in ids)


@pytest.mark.parametrize(
    ("text", "tokens", "types", "truncated"),
    [
        ("A Good film.", "[CLS] a good film . [SEP]", [0] * 6, False),
        ("", "[CLS] [SEP]", [0] * 2, False),
        (("good", "so bad"), "[CLS] good [SEP] so bad [SEP]", [0, 0, 0, 1, 1, 1], False),
        (("", ""), "[CLS] [SEP] [SEP]", [0, 0, 1], False),
        ("a a a a a a a a", "[CLS] a a a a a a a a [SEP]", [0] * 10, False),
        ("a a a a a a a a b", "[CLS] a a a a a a a a [SEP]", [0] * 10, True),
        ("good \ud800 film", "[CLS] good film [SEP]", [0] * 4, False),
        ("日本", "[CLS] [UNK] [UNK] [SEP]", [0] * 4, False),
        ("a\u2028b\x00c", "[CLS] a b ##c [SEP]", [0] * 5, False),
    ],
)
def test_encode_single_text(
    encoder: TextEncoder, tiny_tokenizer: bytes, text: str, tokens: str, types: list[int], truncated: bool
) -> None:
    (row,) = encoder.encode([text])

    assert _tokens(encoder, tiny_tokenizer, row.ids) == tokens
    assert row.type_ids == types
    assert row.truncated is truncated


@pytest.mark.parametrize("text", ["a good film", "", "word " * 100, ("a good", "film"), ("word " * 100, "film")])
def test_encode_one_text_as_among_others(encoder: TextEncoder, text: Text) -> None:
    assert encoder.encode([text]) == encoder.encode([text, "another"])[:1]


@pytest.mark.parametrize("pad_token_id", [0, 1])
def test_special_ids_are_those_around_texts_and_padding(tiny_tokenizer: bytes, pad_token_id: int) -> None:
    encoder = TextEncoder(tiny_tokenizer, max_length=10, pad_token_id=pad_token_id)

    # [CLS] is 2 and [SEP] 3 in this tokenizer.
    assert encoder.special_ids == {pad_token_id, 2, 3}


@pytest.mark.parametrize("place", ["vocab", "special_tokens"])
def test_largest_id_is_that_of_a_vocabulary_with_a_hole(tiny_tokenizer: bytes, place: str) -> None:
    tree = json.loads(tiny_tokenizer)
    if place == "vocab":
        tree["model"]["vocab"]["moving"] = 5000
    else:
        tree["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [5000]

    encoder = TextEncoder(json.dumps(tree).encode(), max_length=10, pad_token_id=0)

    assert encoder.largest_id == 5000
    assert max(encoder.encode(["moving"])[0].ids) == 5000


@pytest.mark.parametrize(("asked", "tokens"), [(None, 10), (10, 10), (99, 10), (6, 6), (4, 4)])
def test_encode_max_length_is_at_most_the_models(encoder: TextEncoder, asked: int | None, tokens: int) -> None:
    (row,) = encoder.encode(["a " * 50], max_length=asked)

    assert len(row.ids) == tokens
    assert row.truncated


def test_encode_truncates_the_longer_of_a_pair_first(encoder: TextEncoder) -> None:
    (row,) = encoder.encode([("a " * 50, "good")])

    assert row.type_ids == [0] * 8 + [1] * 2
    assert row.truncated


_PARTS = st.builds(
    operator.mul,
    st.sampled_from(["brilliant ", "日      ", "x" * 101, "e\u0301 a  ", ".", "[SEP] ", f"{'x' * 101} "]),
    st.sampled_from([0, 1, 3, 4, 5, 24, 25, 26, 40]),
)


@example(first="brilliant " * 150, second="good " * 150, tail="", max_length=8)
@example(first="good " * 150, second="brilliant " * 150, tail="", max_length=8)
@given(first=_PARTS, second=_PARTS, tail=st.sampled_from(["", " good", "x" * 200]), max_length=st.integers(8, 11))
def test_encode_pair_gives_the_tokens_of_all_of_it(
    tiny_tokenizer: bytes, first: str, second: str, tail: str, max_length: int
) -> None:
    whole = Tokenizer.from_buffer(tiny_tokenizer)
    whole.enable_truncation(max_length)
    expected = whole.encode(first + tail, second)

    (row,) = TextEncoder(tiny_tokenizer, max_length=max_length, pad_token_id=0).encode([(first + tail, second)])

    assert (row.ids, row.type_ids, row.truncated) == (expected.ids, expected.type_ids, bool(expected.overflowing))


@pytest.mark.parametrize("pair", [("who", "good film " * 200_000), ("good film " * 700, "a good film " * 700)])
def test_encode_pair_takes_no_time_for_what_is_cut_off(encoder: TextEncoder, pair: tuple[str, str]) -> None:
    start = time.process_time()

    (row,) = encoder.encode([pair])

    assert time.process_time() - start < 1  # 3 and more when all of it is cut into pieces, and they are paired
    assert row.truncated


@pytest.mark.parametrize("asked", [-1, 0, 3])
def test_encode_max_length_too_small(encoder: TextEncoder, asked: int) -> None:
    with pytest.raises(DataError, match=f"^max_length: expected more than 3, got {asked}"):
        encoder.encode(["a"], max_length=asked)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(3, "int"), (None, "None"), (b"a", "bytes"), (("a",), "tuple"), (("a", "b", "c"), "tuple"), ({}, "dict")],
)
def test_encode_not_a_text(encoder: TextEncoder, bad: object, kind: str) -> None:
    with pytest.raises(DataError, match=f"^text 2: expected a str or a pair of str, got {kind}"):
        encoder.encode(["a", "b", bad])  # type: ignore[list-item]


def test_encode_pair_with_a_number(encoder: TextEncoder) -> None:
    with pytest.raises(DataError, match=r"^text 0: expected a str or a pair of str, got int"):
        encoder.encode([("a", 3)])  # type: ignore[list-item]


def test_encode_nothing(encoder: TextEncoder) -> None:
    assert encoder.encode([]) == []


@given(text=st.text(st.characters(), max_size=30))
def test_encode_any_text_gives_ids_in_the_vocabulary(tiny_tokenizer: bytes, text: str) -> None:
    (row,) = TextEncoder(tiny_tokenizer, max_length=10, pad_token_id=0).encode([text])

    assert 2 <= len(row.ids) <= 10
    assert row.ids[0] == 2
    assert row.ids[-1] == 3


def test_encode_different_lengths_from_many_threads(encoder: TextEncoder) -> None:
    lengths = [5, 6, 7, 8, 9, 10] * 60
    start = threading.Barrier(4)

    def encode(part: int) -> list[int]:
        start.wait()
        return [len(encoder.encode(["a " * 50] * 20, max_length=n)[-1].ids) for n in lengths[part::4]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encode, range(4)))

    assert found == [lengths[part::4] for part in range(4)]


def test_text_encoder_refuses_another_file() -> None:
    with pytest.raises(BundleError, match=r"^tokenizer\.json: cannot be read \("):
        TextEncoder(b'{"model": 3}', max_length=10, pad_token_id=0)


def test_pad_values(encoder: TextEncoder) -> None:
    batch = encoder.pad(encoder.encode(["a a", ("a", "a")]))

    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.int64)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert batch["input_ids"][0, 4] == 0


@given(
    lengths=st.lists(st.integers(2, 60), max_size=40),
    max_rows=st.integers(1, 9),
    max_tokens=st.integers(1, 200),
    sort=st.booleans(),
)
def test_batches_cover_every_row_within_the_limits(
    lengths: list[int], max_rows: int, max_tokens: int, sort: bool
) -> None:
    groups = [group.tolist() for group in batches(lengths, max_rows=max_rows, max_tokens=max_tokens, sort=sort)]

    order = [place for group in groups for place in group]
    assert sorted(order) == list(range(len(lengths)))
    assert all(len(group) <= max_rows for group in groups)
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= max_tokens for group in groups)
    assert order == (sorted(order, key=lambda place: (lengths[place], place)) if sort else list(range(len(lengths))))


@given(
    rows=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 4)), max_size=40),
    max_rows=st.integers(1, 9),
    cut=st.booleans(),
)
def test_batches_sort_by_depth_then_length_and_keep_the_order_of_equals(
    rows: list[tuple[int, int]], max_rows: int, cut: bool
) -> None:
    lengths, depths = [length for length, _ in rows], [depth for _, depth in rows]

    groups = [
        group.tolist()
        for group in batches(
            lengths, max_rows=max_rows, max_tokens=40, depths=np.array(depths, np.int64), cut_depths=cut
        )
    ]

    order = [place for group in groups for place in group]
    assert order == sorted(range(len(rows)), key=lambda place: (depths[place], lengths[place], place))
    assert all(len(group) <= max_rows for group in groups)
    assert not cut or all(len({depths[i] for i in group}) == 1 for group in groups)


def test_batches_of_unsorted_rows_are_cut_where_the_depth_changes() -> None:
    depths = np.array([1, 1, 2, 1])

    groups = batches([3] * 4, max_rows=8, max_tokens=99, sort=False, depths=depths, cut_depths=True)

    assert [group.tolist() for group in groups] == [[0, 1], [2], [3]]


def test_join_rows_puts_batches_of_different_sizes_together() -> None:
    first = (np.array([2, 0]), np.array([[[1.0], [2.0]], [[3.0], [4.0]]], np.float32))
    second = (np.array([1]), np.array([[[5.0], [6.0], [7.0]]], np.float32))

    joined = join_rows([first, second], 3)

    assert joined[..., 0].tolist() == [[3.0, 4.0, 0.0], [5.0, 6.0, 7.0], [1.0, 2.0, 0.0]]
    assert joined.dtype == np.float32


def test_encode_numbers_the_texts(encoder: TextEncoder) -> None:
    assert [row.text for row in encoder.encode(["a", "b", "c"], first=7)] == [0, 1, 2]
