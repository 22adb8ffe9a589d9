"""Windows, targets, spans and predictions of question answering, without any model."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgebert.errors import ConfigError, DataError
from edgebert.questions import Gold, Question
from edgebert.tasks import question_answering as task
from edgebert.tasks import task_settings
from edgebert.tasks._spans import best_spans
from edgebert.text import TextEncoder, Window

SMALL = task.Config(overlap_tokens=4, max_question_tokens=5, max_answer_tokens=3)
WORDS = ["good", "film", "Boring", "plot!", "naïve", "日本", "a", "x.y", "UNKNOWN", "..."]


def _byte_level() -> bytes:
    """Byte-level BPE without merges, with two marks between the texts of a pair, as RoBERTa has them."""
    tokens = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module", params=["word pieces", "bytes"])
def encoder(request: pytest.FixtureRequest, tiny_tokenizer: bytes) -> TextEncoder:
    tokenizer = tiny_tokenizer if request.param == "word pieces" else _byte_level()
    return TextEncoder(tokenizer, max_length=24, pad_token_id=0)


def _passage(words: list[str], gaps: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """Joins words with one or two spaces, and says where each stands."""
    text, places = "", []
    for word, gap in zip(words, gaps, strict=True):
        text += " " * gap
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places


passages = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(1, 2)), min_size=1, max_size=60)


@given(parts=passages, first=st.integers(0, 59), more=st.integers(0, 1), longest=st.integers(8, 24))
def test_an_answer_decodes_to_its_text_in_some_window(
    encoder: TextEncoder, parts: list[tuple[str, int]], first: int, more: int, longest: int
) -> None:
    passage, places = _passage([word for word, _ in parts], [gap for _, gap in parts])
    start = places[first % len(places)][0]
    end = places[min(first % len(places) + more, len(places) - 1)][1]
    question = Question("what ?", passage, None, (Gold(passage[start:end], start),))

    windows = task.encode([("what ?", passage)], encoder, SMALL, max_length=longest)
    targets = task.row_targets([question], windows, task.encode_targets([question], task.LABELS, where="x"))

    assert all(len(window.ids) <= longest for window in windows)
    found = [(window, *target) for window, target in zip(windows, targets.tolist(), strict=True) if any(target)]
    for window, first_token, last_token in found:
        assert passage[window.offsets[first_token, 0] : window.offsets[last_token, 1]].strip() == passage[start:end]
    # An answer is whole in some window unless it is longer than what neighbours share.
    own = encoder.encode_windows(
        [("", passage[start:end])], overlap_tokens=0, max_question_tokens=1, max_answer_tokens=1, max_length=24
    )
    overlap = min(4, (longest - _special(encoder) - min(5, (longest - _special(encoder)) // 2)) // 2)
    assert found or sum(int((w.offsets[:, 0] >= 0).sum()) for w in own) > overlap


def _special(encoder: TextEncoder) -> int:
    return len(encoder.encode([("", "")])[0].ids)


@given(parts=passages, overlap=st.integers(0, 12), longest=st.integers(8, 24))
def test_windows_cover_the_passage_and_overlap(
    encoder: TextEncoder, parts: list[tuple[str, int]], overlap: int, longest: int
) -> None:
    passage, _ = _passage([word for word, _ in parts], [gap for _, gap in parts])

    windows = encoder.encode_windows(
        [("what ?", passage)], overlap_tokens=overlap, max_question_tokens=4, max_answer_tokens=3, max_length=longest
    )

    room = longest - _special(encoder)
    shared = min(overlap, (room - min(4, room // 2)) // 2)
    seen = [np.array(window.ids)[window.offsets[:, 0] >= 0].tolist() for window in windows]
    whole = list(seen[0])
    for before, after in pairwise(seen):
        assert before[len(before) - shared :] == after[:shared]
        assert len(after) > shared
        whole += after[shared:]
    longer = TextEncoder(encoder._tokenizer.to_str().encode(), max_length=4096, pad_token_id=0)
    (alone,) = task.encode([("what ?", passage)], longer, SMALL)
    assert whole == np.array(alone.ids)[alone.offsets[:, 0] >= 0].tolist()


def test_rows_know_their_question(encoder: TextEncoder) -> None:
    rows = task.encode([("a ?", "good " * 40), ("b ?", "x"), ("c ?", "plot " * 40)], encoder, SMALL)

    numbers = [row.text for row in rows]
    assert numbers == sorted(numbers)
    assert numbers.count(1) == 1
    assert min(numbers.count(0), numbers.count(2)) > 1


@pytest.mark.parametrize("question", ["good good good good good good", "wwwwwwwwwwwwwww", "日本日本日本日本日本"])
def test_a_long_question_is_cut(encoder: TextEncoder, question: str) -> None:
    (row,) = task.encode([(question, "x")], encoder, SMALL)
    (short,) = task.encode([("a", "x")], encoder, SMALL)

    assert row.truncated
    assert not short.truncated
    assert len(row.ids) <= len(short.ids) + 4
    assert row.offsets.max() == 1


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("a text", "text 3: expected a question and its passage, got str 'a text'."),
        (("a", 5), "text 3: expected a str or a pair of str, got int 5."),
        (("a", "b", "c"), "text 3: expected a question and its passage, got tuple ('a', 'b', 'c')."),
    ],
)
def test_encode_refuses_what_is_no_pair(encoder: TextEncoder, pair: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        task.encode([pair], encoder, SMALL, first=3)

    assert str(raised.value) == message


def test_encode_refuses_a_window_without_room(encoder: TextEncoder) -> None:
    with pytest.raises(DataError, match=r"^max_length: expected more than \d, got 4\.$"):
        task.encode([("a", "b")], encoder, SMALL, max_length=4)


def _window(passage: str, *, question: int = 2, longest: int = 3, text: int = 0) -> Window:
    """A window whose tokens are the letters of a passage, between a question and marks."""
    offsets = [[-1, -1]] * (question + 2) + [[i, i + 1] for i in range(len(passage))] + [[-1, -1]]
    ids = list(range(len(offsets)))
    return Window(
        ids, [0] * len(ids), False, text, passage=passage, offsets=np.array(offsets), max_answer_tokens=longest
    )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 1, (4, 4)), (1, 3, (5, 6)), (0, 4, (4, 7)), (3, 4, (7, 7)), (3, 6, (0, 0)), (5, 6, (0, 0))],
)
def test_row_targets_are_tokens_or_the_first_one(start: int, end: int, expected: tuple[int, int]) -> None:
    question = Question("?", "abcdef", None, (Gold("abcdef"[start:end], start), Gold("a", 0)))

    targets = task.row_targets([question], [_window("abcd")], np.empty(1, object))

    assert targets.tolist() == [list(expected)]
    assert targets.dtype == np.int64


def _brute_force(scores: Sequence[np.ndarray[Any, Any]], windows: Sequence[Window]) -> list[tuple[float, str, int]]:
    """Every span of the windows, as sentences say it: probability in all windows, text and place, the best first."""
    spans: list[tuple[float, str, int, str]] = []
    for logits, window in zip(scores, windows, strict=True):
        for i in range(len(window.ids)):
            for j in range(i, min(i + window.max_answer_tokens, len(window.ids))):
                if window.offsets[i, 0] >= 0 and window.offsets[j, 0] >= 0:
                    begin, stop = int(window.offsets[i, 0]), int(window.offsets[j, 1])
                    spans.append(
                        (float(logits[i, 0] + logits[j, 1]), window.passage[begin:stop], begin, window.passage)
                    )
    total = sum(np.exp(score) for score, *_ in spans)
    everywhere: dict[tuple[str, int, str], float] = defaultdict(float)
    for score, *span in spans:
        everywhere[tuple(span)] += np.exp(score) / total
    return [
        (everywhere[(text, begin, passage)], text, begin) for _, text, begin, passage in sorted(spans, reverse=True)
    ]


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    longest=st.integers(1, 6),
    top_k=st.integers(1, 8),
)
def test_best_spans_are_those_of_brute_force(seed: int, sizes: list[int], longest: int, top_k: int) -> None:
    rng = np.random.default_rng(seed)
    windows = [_window("".join(rng.choice(list("abc"), size)), longest=longest) for size in sizes]
    padded = max(len(window.ids) for window in windows)
    scores = [rng.normal(size=(padded, 2)) for _ in windows]

    best = best_spans(scores, windows, top_k)

    expected: dict[str, tuple[float, int]] = {}
    for probability, text, begin in _brute_force(scores, windows):
        expected.setdefault(text, (probability, begin))
    likely = sorted(list(expected)[:top_k], key=lambda text: -expected[text][0])
    assert [candidate.text for candidate in best] == likely
    for candidate in best:
        probability, begin = expected[candidate.text]
        assert candidate.score == pytest.approx(probability)
        assert (candidate.start, candidate.end) == (begin, begin + len(candidate.text))


def test_best_spans_in_the_overlap_of_windows_have_the_probability_of_both() -> None:
    window = _window("abcdef", longest=3)
    scores = np.zeros((len(window.ids), 2))
    first = int(np.flatnonzero(window.offsets[:, 0] == 2)[0])
    scores[first, 0] = scores[first, 1] = 20.0

    (alone,) = best_spans([scores], [window], 1)
    (shared,) = best_spans([scores, scores], [window, window], 1)

    assert shared == ("c", pytest.approx(alone.score), 2, 3)
    assert alone.score > 0.99


def test_best_spans_of_tokens_that_are_parts_of_one_character() -> None:
    whole = _window("abc", longest=3)
    parts = dataclasses.replace(whole, offsets=np.array([[-1, -1]] * 4 + [[0, 1]] * 3 + [[-1, -1]]))
    scores = np.zeros((len(parts.ids), 2))
    scores[5, 0] = scores[5, 1] = 20.0  # the middle one of three tokens that are one character

    (best,) = best_spans([scores], [parts], 1)

    assert best == ("a", pytest.approx(1.0), 0, 1)


def test_best_spans_has_no_white_space_around() -> None:
    window = _window(" a  b ", longest=6)
    scores = np.zeros((len(window.ids), 2))
    scores[4, 0] = scores[9, 1] = 50.0

    (best,) = best_spans([scores], [window], 1)

    assert best == ("a  b", pytest.approx(1.0), 1, 5)


def test_best_spans_take_no_memory_for_answers_longer_than_the_window() -> None:
    scores = np.random.default_rng(0).normal(size=(12, 2))

    best, alike = (best_spans([scores], [_window("abcdef", longest=longest)], 3) for longest in (2**40, 6))

    assert best == alike


@pytest.mark.parametrize("passage", ["", "   "])
def test_best_spans_of_nothing_is_empty(passage: str) -> None:
    window = _window(passage)

    assert best_spans([np.zeros((len(window.ids), 2))], [window], 3) == [("", 0.0, 0, 0)]


def test_predictions_take_the_best_window_of_each_question() -> None:
    windows = [_window("ab"), _window("cd"), _window("ef", text=1)]
    scores = np.zeros((3, 7, 2))
    scores[0, 4] = 3.0
    scores[1, 5] = 4.0
    scores[2, 5, 0] = 9.0
    scores[2, 5, 1] = 1.0

    assert task.predictions(scores, windows).tolist() == ["d", "f"]
    assert [[c.text for c in best] for best in task.ranked(scores, windows, task.LABELS, 2)] == [
        ["d", "a"],
        ["f", "ef"],
    ]


def test_values_are_probabilities_of_each_end() -> None:
    scores = np.array([[[0.0, 1.0], [np.log(3), 1.0], [-1e4, -1e4]]])

    assert task.values(scores)[0] == pytest.approx(np.array([[0.25, 0.5], [0.75, 0.5], [0.0, 0.0]]))


def test_metrics_and_agreement_by_hand() -> None:
    predictions = np.array(["the tower of London", "x"], object)
    targets = np.empty(2, object)
    targets[:] = [("tower", "a Tower of London!"), ("y",)]

    assert task.per_text(predictions, targets).tolist() == [1.0, 0.0]
    assert task.metrics(predictions, targets) == {"f1": 0.5, "exact_match": 0.5}
    assert task.metric(predictions, targets) == 0.5
    assert task.agreement(predictions, np.array(["the tower of London", "y"], object)) == 0.5
    with pytest.raises(DataError, match="expected one answer for each of at least 1 question, got 2 answers for 1 q"):
        task.metrics(predictions, targets[:1])


def test_encode_targets_needs_an_answer() -> None:
    with pytest.raises(DataError, match=r"^x: example 2: expected an answer to the question, got none"):
        task.encode_targets([Question("?", "a", None, (Gold("a", 0),)), Question("?", "a")], task.LABELS, where="x")


def test_groups_are_the_passages() -> None:
    questions = [Question("?", "a", None, (), number) for number in (4, 4, 0)]

    assert task.groups(questions).tolist() == [4, 4, 0]


def test_check_labels() -> None:
    task.check_labels(("start", "end"), where="x")
    with pytest.raises(ConfigError, match=r"^x: expected start, end, got no, yes; leave it out\.$"):
        task.check_labels(("no", "yes"), where="x")
    assert task.label_names([]) == ("start", "end")


def test_columns_refused() -> None:
    with pytest.raises(ConfigError, match=r"^columns: questions are read from SQuAD's JSON, which has none"):
        task.read("nothing.json", columns={"text": "question"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap_tokens": -1}, "overlap_tokens: expected 0 or more, got -1"),
        ({"max_answer_tokens": 0}, "max_answer_tokens: expected 1 or more, got 0"),
        ({"max_question_tokens": 0}, "max_question_tokens: expected 1 or more, got 0"),
        ({"stride": 3}, "unknown key 'train.task_settings.stride'."),
    ],
)
def test_settings_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        task_settings(task, settings, where="x", prefix="train.task_settings.")  # type: ignore[arg-type]

    assert message in str(raised.value)
    assert msgspec.to_builtins(task.Config())["overlap_tokens"] == 128
