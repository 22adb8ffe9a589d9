"""No text, array or argument makes the runtime fail in another way than by one line that says what is wrong."""

import random
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgebert import EdgeModel
from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.text import LARGEST_TEXT, TextEncoder, readable
from tests.faults._judge import answer_or_refusal, guarded
from tests.faults._texts import no_counts, no_members, not_texts, texts, unusual_texts

Rounds = Callable[[int, int], int]
Record = Callable[[str, object], None]

BUNDLES = ("dact_bundle", "plain_bundle", "token_bundle", "width_bundle", "geep_bundle")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def plain(plain_bundle: Path) -> EdgeModel:
    return EdgeModel.from_pretrained(plain_bundle, threads=1)


@pytest.fixture(scope="module")
def reader(reader_bundle: Path) -> EdgeModel:
    return EdgeModel.from_pretrained(reader_bundle, threads=1)


def test_any_text_is_answered_as_it_is_alone(plain: EdgeModel, rounds: Rounds, record_property: Record) -> None:
    drawn = list(islice(texts(random.Random(1)), rounds(300, 12_000)))
    with guarded(1800):
        alone = [plain(text) for _, text in drawn]
    for start in range(0, len(drawn), 200):
        with guarded():
            together = plain([text for _, text in drawn[start : start + 200]])
        for (name, text), one, other in zip(drawn[start:], alone[start:], together, strict=False):
            assert one.score == pytest.approx(other.score, abs=1e-5), (name, text)
            assert (one.tokens, one.truncated) == (other.tokens, other.truncated), (name, text)
    record_property("texts", f"{len(drawn)} answered alone and in company, alike")


def test_any_text_and_pair_is_answered_by_every_kind_of_program(
    request: pytest.FixtureRequest, rounds: Rounds, record_property: Record
) -> None:
    drawn = texts(random.Random(2))
    for bundle in BUNDLES[: rounds(1, len(BUNDLES))]:
        singles = [text for _, text in islice(drawn, rounds(100, 1500))]
        pairs = [(next(drawn)[1], next(drawn)[1]) for _ in range(rounds(50, 500))]

        with EdgeModel.from_pretrained(request.getfixturevalue(bundle), threads=1) as model, guarded(600):
            results = [*model(singles), *model.stream(pairs, window=64)]

        assert all(0 < result.score <= 1 and result.tokens >= 2 for result in results)
        record_property("texts", f"{len(results)} singles and pairs answered by {bundle}")


def test_an_empty_text_answers_as_its_two_special_tokens(plain: EdgeModel) -> None:
    empty = plain.forward(input_ids=[[2, 3]]).logits

    for text in ("", " ", "\n\t", "\0", "\ud800", "\ufeff", "\u200b\x1b"):
        assert plain(text).tokens == 2
        np.testing.assert_allclose(np.log(plain.predict_proba([text])), _log_softmax(empty), atol=1e-5)


def _log_softmax(logits: Any) -> Any:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_any_question_over_any_passage_is_answered_with_its_words(
    reader: EdgeModel, rounds: Rounds, record_property: Record
) -> None:
    drawn = texts(random.Random(3))
    pairs = [(next(drawn)[1], " ".join(text for _, text in islice(drawn, 3))) for _ in range(rounds(150, 4000))]

    with guarded(600):
        answers = list(reader.stream(pairs, top_k=2, window=100))

    for (question, passage), answer in zip(pairs, answers, strict=True):
        assert 0 <= answer.score <= 1, (question, passage)
        assert answer.text == readable(passage)[answer.start : answer.end], (question, passage)
    record_property("questions", f"{len(answers)} answered with words of their passages")


ASKED: dict[str, Callable[[EdgeModel, Any], Any]] = {
    "call": lambda model, value: model(value),
    "predict": lambda model, value: model.predict(value),
    "predict_proba": lambda model, value: model.predict_proba(value),
    "stream": lambda model, value: list(model.stream(value)),
    "encode": lambda model, value: model.encode(value),
}
ANSWERED: dict[str, Callable[[EdgeModel, Any], Any]] = {
    "question": lambda model, value: model.answer(value, "a good film"),
    "context": lambda model, value: model.answer("who", value),
    "lists": lambda model, value: model.answer([value], [value]),
    "stream": lambda model, value: list(model.stream([("who", value)])),
    "pair": lambda model, value: list(model.stream([value])),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_no_text_is_refused(plain: EdgeModel, asked: str) -> None:
    ask = ASKED[asked]

    for name, value in not_texts().items():
        for what, given in (("alone", value), ("in a list", ["good", value]), ("in a pair", [("good", value)])):
            _refused(f"{asked}, {name}, {what}", lambda given=given: ask(plain, given), DataError)
    for name, value in no_members().items():
        _refused(f"{asked}, {name}", lambda value=value: ask(plain, ["good", value]), DataError)


@pytest.mark.parametrize("asked", ANSWERED)
def test_what_is_no_question_or_passage_is_refused(reader: EdgeModel, asked: str) -> None:
    for name, value in not_texts().items():
        _refused(f"{asked}, {name}", lambda value=value: ANSWERED[asked](reader, value), DataError)


@pytest.mark.parametrize("name", unusual_texts())
def test_texts_of_other_types_answer_as_plain_ones(plain: EdgeModel, name: str) -> None:
    given, same = unusual_texts()[name]

    assert plain(given) == plain(same)  # type: ignore[call-overload]


COUNTS: dict[str, Callable[[EdgeModel, Any], Any]] = {
    "top_k": lambda model, value: model(["good"], top_k=value),
    "top_k of one": lambda model, value: model("good", top_k=value),
    "top_k of a stream": lambda model, value: list(model.stream(["good"], top_k=value)),
    "batch_size": lambda model, value: model(["good"], batch_size=value),
    "batch_size of one": lambda model, value: model("good", batch_size=value),
    "batch_size of predict": lambda model, value: model.predict(["good"], batch_size=value),
    "max_length": lambda model, value: model(["good"], max_length=value),
    "max_length of predict_proba": lambda model, value: model.predict_proba(["good"], max_length=value),
    "window": lambda model, value: list(model.stream(["good"], window=value)),
    "threads": lambda model, value: EdgeModel.from_pretrained(model.bundle.path, threads=value),
    "policy": lambda model, value: EdgeModel.from_pretrained(model.bundle.path, policy=value),
    "provider": lambda model, value: EdgeModel.from_pretrained(model.bundle.path, provider=value),
    "set_policy": lambda model, value: model.set_policy(value),
    "a knob": lambda model, value: model.set_policy("fixed", layer=value),
    "path": lambda _, value: EdgeModel.from_pretrained(value),
}
NO_NAME = {"policy", "provider", "set_policy", "path"}


@pytest.mark.parametrize("argument", COUNTS)
def test_what_is_no_count_or_name_is_refused(dact_bundle: Path, argument: str) -> None:
    with EdgeModel.from_pretrained(dact_bundle, threads=1) as model:
        for name, value in no_counts().items():
            _refused(f"{argument}, {name}", lambda value=value: COUNTS[argument](model, value), EdgeBertError)


@pytest.mark.parametrize("value", ["x", None, 0, -1, float("nan"), float("inf"), True, [1], 10**400, 1j, b"1"])
def test_a_memory_budget_that_is_no_number_is_refused(dact_bundle: Path, value: Any) -> None:
    if value is not None:
        with pytest.raises(ConfigError, match=r"^memory_budget_mb: expected a number of more than 0, got "):
            EdgeModel.from_pretrained(dact_bundle, memory_budget_mb=value)


@pytest.mark.parametrize("value", [np.int64(5), np.int8(5), 2**62, 10**30])
@pytest.mark.parametrize("argument", ["top_k", "batch_size", "max_length"])
def test_large_counts_and_those_of_numpy_are_counts(plain: EdgeModel, argument: str, value: Any) -> None:
    assert plain(["good", "bad"], **{argument: value})[0].label


@pytest.mark.parametrize("path", ["", "\0", "a\0b", "x" * 5000, "\udcff", "/dev/null", "/dev/zero", "no/such/bundle"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    _refused(repr(path[:20]), lambda: EdgeModel.from_pretrained(path), EdgeBertError)


def _refused(name: str, call: Callable[[], Any], kind: type[EdgeBertError]) -> None:
    with guarded():
        answer, error = answer_or_refusal(name, call)
    assert isinstance(error, kind), f"{name}: {answer!r:.100} {error!r}"


def _arrays(rng: np.random.Generator) -> Any:
    """Returns something that may or may not be token ids or a mask."""
    shape = tuple(rng.integers(0, 6, rng.integers(0, 4)))
    kinds = ("i1", "i8", "u8", "?", "f4", "f8", "c8", "U3", "S2", "O", "M8[D]", "V4")
    kind = rng.choice(kinds, p=[0.1, 0.4, 0.1, 0.1] + [0.3 / 8] * 8)
    array = rng.choice([-(2**40), -1, 0, 1, 2, 3, 40, 100, 10**6], shape, p=[0.02, 0.03, *[0.15] * 5, 0.15, 0.05])
    made = array.astype(kind) if kind != "V4" else np.zeros(shape, kind)
    odd = (None, 3, "abc", b"abc", [], [[]], [[1], [1, 2]], {}, {1}, [None], [[10**30]], [["1"]], object(), np.nan)
    return odd[rng.integers(len(odd))] if rng.random() < 0.1 else made


def test_arrays_that_are_no_ids_are_refused_and_others_answered(
    plain: EdgeModel, rounds: Rounds, record_property: Record
) -> None:
    rng = np.random.default_rng(4)
    answered, count = 0, rounds(500, 6000)
    with guarded(600), np.errstate(all="ignore"):
        for number in range(count):
            given = [_arrays(rng) for _ in range(3)]
            ids = rng.integers(0, 40, (2, 4)) if rng.random() < 0.5 else given[0]
            shape = getattr(ids, "shape", (2, 4))
            mask = rng.integers(0, 2, shape) if rng.random() < 0.6 else given[1]
            types = rng.integers(0, 2, shape) if rng.random() < 0.7 else given[2]
            forward, _ = answer_or_refusal(f"arrays {number}", lambda a=(ids, mask, types): plain.forward(*a))
            answered += forward is not None
            assert forward is None or np.isfinite(forward.logits).all()
    assert 0 < answered < count
    record_property("arrays", f"{answered} of {count} answered, the others refused")


def test_what_a_mask_covers_says_nothing_wherever_it_stands(request: pytest.FixtureRequest, rounds: Rounds) -> None:
    rng = np.random.default_rng(5)
    for bundle in BUNDLES[: rounds(1, len(BUNDLES))]:
        with EdgeModel.from_pretrained(request.getfixturevalue(bundle), threads=1) as model:
            model.set_policy("never")
            for _ in range(rounds(20, 200)):
                mask = rng.integers(0, 2, (3, 8))
                mask[:, 0] = 1  # the first token, which some heads read
                ids = rng.integers(4, 40, mask.shape)
                other = np.where(mask, ids, rng.integers(4, 40, mask.shape))

                one, two = model.forward(ids, mask), model.forward(other, mask)

                np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)


HUGE = {
    "one word": "a",
    "one word of accents": "é",
    "spaces": " ",
    "many short words": "a ",
    "characters that are words": "日",
    "one letter and its marks": "\u0301",
    "points": ".",
    "NULs": "\0",
    "families": "👩\u200d👩\u200d👧 ",
    "lone surrogates": "\ud800",
    "special tokens": "[SEP]",
    "words too long": f"{'x' * 101} ",
}
"""What a text of a million characters, in `make test` of a tenth of that, repeats."""


@pytest.fixture
def huge(rounds: Rounds) -> Callable[[str], str]:
    size = rounds(MEGABYTE // 10, MEGABYTE)
    return lambda name: ("e" + HUGE[name] * size)[:size]


@pytest.mark.parametrize("name", HUGE)
def test_a_million_characters_are_answered_at_once(
    plain: EdgeModel, huge: Callable[[str], str], name: str, record_property: Record
) -> None:
    text = huge(name)
    start = time.perf_counter()
    with guarded():
        (result,) = plain([text])

    record_property("seconds", f"{time.perf_counter() - start:.2f} for {len(text)} characters, {name}")
    assert result.tokens <= 48


@pytest.mark.parametrize("name", HUGE)
def test_a_question_of_a_million_characters_is_cut(reader: EdgeModel, huge: Callable[[str], str], name: str) -> None:
    with guarded():
        assert reader.answer(huge(name), "a good film").tokens <= 48


@pytest.mark.parametrize("name", ["one word", "spaces", "words too long", "NULs", "one letter and its marks"])
def test_a_passage_of_a_million_characters(
    reader: EdgeModel, huge: Callable[[str], str], name: str, record_property: Record
) -> None:
    passage = huge(name)
    start = time.perf_counter()
    with guarded():
        answer = reader.answer("which is good ?", passage, top_k=3)

    spent = time.perf_counter() - start
    record_property("seconds", f"{spent:.2f} for {len(passage)} characters, {name}, {answer.windows} windows")


def test_a_passage_of_many_windows_takes_time_in_proportion(
    reader: EdgeModel, rounds: Rounds, record_property: Record
) -> None:
    words = rounds(4000, 40_000)
    with guarded():
        start = time.perf_counter()
        answer = reader.answer("which is good ?", "a film " * (words // 2), top_k=5)

    assert answer.windows > words / 48
    record_property("seconds", f"{time.perf_counter() - start:.2f} for {words} words in {answer.windows} windows")


def test_texts_beyond_any_sense_are_refused(plain: EdgeModel, reader: EdgeModel) -> None:
    text = "a" * (LARGEST_TEXT + 1)

    with pytest.raises(DataError, match=r"^text 1: expected at most 4194304 characters, got 4194305; cut it"):
        plain(["good", text])
    with pytest.raises(DataError, match=r"^text 0: expected at most 4194304 characters"):
        reader.answer("who", text)


def _trained(kind: str) -> bytes:
    """Returns a small tokenizer of one of the kinds that encoders have."""
    words = ["the film was good and moving", "naïve café, isn't it?", "日本語 テキスト", "12,345 points - well!"] * 20
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "BPE of bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = {"special_tokens": ["<unk>"], "unk_token": "<unk>"}
        trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, **special)
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("kind", ["WordPiece", "BPE of bytes", "Unigram"])
def test_a_long_text_is_cut_to_the_tokens_of_all_of_it(kind: str, rounds: Rounds, record_property: Record) -> None:
    made = _trained(kind)
    encoder, whole = TextEncoder(made, max_length=12, pad_token_id=0), Tokenizer.from_buffer(made)
    drawn, rng, count = texts(random.Random(6)), random.Random(7), rounds(200, 3000)

    for _ in range(count):
        text = rng.choice((" ", "", "\n", "a")).join(readable(next(drawn)[1]) for _ in range(rng.randint(3, 40)))
        (row,) = encoder.encode([text])
        ids = whole.encode(text).ids

        assert row.ids == ids[:12], text
        assert row.truncated == (len(ids) > 12), text
    record_property("long texts", f"{count} of {kind} cut as a whole")


@pytest.mark.parametrize("max_length", [11, 12])
@pytest.mark.parametrize("kind", ["WordPiece", "BPE of bytes", "Unigram"])
def test_a_pair_of_long_texts_is_cut_to_the_tokens_of_all_of_it(
    kind: str, max_length: int, rounds: Rounds, record_property: Record
) -> None:
    made = _trained(kind)
    encoder, whole = TextEncoder(made, max_length=max_length, pad_token_id=0), Tokenizer.from_buffer(made)
    whole.enable_truncation(max_length)
    drawn, rng, count = texts(random.Random(8)), random.Random(9), rounds(25, 1000)

    def part() -> str:
        text = rng.choice((" ", "", "\n", "a")).join(readable(next(drawn)[1]) for _ in range(rng.choice((1, 9))))
        return text[: rng.choice((220, 260))]  # what the library makes of all of a pair grows with the square of it

    for _ in range(count):
        first = part()
        pair = (first, rng.choice((part(), first, f"{first} a")))
        (row,) = encoder.encode([pair])
        expected = whole.encode(*pair)

        assert (row.ids, row.type_ids) == (expected.ids, expected.type_ids), pair
        assert row.truncated == bool(expected.overflowing), pair
    record_property("long pairs", f"{count} of {kind} cut as a whole")
