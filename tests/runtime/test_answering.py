"""EdgeModel.answer, and the ladder from torch to the engine for models that answer questions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgebert import EdgeModel
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import load_checkpoint, save_checkpoint
from edgebert.errors import ConfigError, DataError
from edgebert.export import export_model
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.policies import make_policy
from edgebert.questions import read_questions
from edgebert.tasks import question_answering
from edgebert.text import Window
from edgebert.verify import compare, differing_rows

LONG = " ".join(["a long film about the camera , with a good cast and a funny plot"] * 6)
METHODS: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "plain": ({"name": "plain"}, ("never", {})),
    "dpbert": ({"name": "dpbert", "planner_width": 16}, ("bypass", {"delta": 0.5})),
    "dpbert_upfront": ({"name": "dpbert", "planner": "upfront", "planner_width": 16}, ("bypass", {"delta": 0.5})),
}


@pytest.fixture(scope="module")
def model(reader_bundle: Path) -> Iterator[EdgeModel]:
    with EdgeModel.from_pretrained(reader_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def windows(model: EdgeModel, questions_data: Path) -> list[Window]:
    """The windows of the test questions and of a long passage, of 21 to 48 tokens."""
    pairs = [(q.text, str(q.text_pair)) for q in read_questions(questions_data, split="test")]
    rows = model.encode([*pairs, ("which is good ?", LONG)])
    assert {len(row.ids) for row in rows} >= {21, 48}
    return list(rows)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(METHODS))
def ladder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_checkpoint: Callable[..., Path],
    balance_planner: Callable[..., None],
    windows: list[Window],
    model: EdgeModel,
) -> Iterator[tuple[Any, EdgeModel, tuple[str, dict[str, Any]]]]:
    """A torch model, its bundle's runtime, and its rule; planners leave out about half of the layers."""
    method, rule = METHODS[request.param]
    points = {"default": OperatingPoint(policy=rule[0], knobs=rule[1])}
    folder = save_tiny_checkpoint(method, points, task="question_answering")
    checkpoint = load_checkpoint(folder)
    if method["name"] == "dpbert":
        balance_planner(checkpoint.model, _batch(model, windows))
        save_checkpoint(checkpoint, folder, force=True)
    bundle = export_model(folder, tmp_path_factory.mktemp("ladders") / "bundle").path
    with EdgeModel.from_pretrained(bundle, threads=1) as runtime:
        torch_model: Any = load_checkpoint(folder).model
        yield torch_model.eval(), runtime, rule


def _batch(model: EdgeModel, windows: list[Window]) -> Batch:
    return Batch(**{name: torch.from_numpy(value) for name, value in model.pad(windows).items()})


def test_ladder_never_equals_the_full_torch_model(ladder: Any, windows: list[Window]) -> None:
    torch_model, runtime, _ = ladder
    batch = _batch(runtime, windows)
    with torch.no_grad():
        expected = torch_model(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()

    runtime.set_policy("never")
    outcome = runtime.run_encoded(windows)

    real = batch.attention_mask.numpy() == 1
    assert outcome.scores.shape == expected.shape == (len(windows), 48, 2)
    assert np.abs(outcome.scores - expected)[real].max() <= 1e-4
    assert (expected[~real] == -1e4).all()
    assert expected[real].std() > 0.1


def test_ladder_rule_equals_the_torch_reference(ladder: Any, windows: list[Window]) -> None:
    torch_model, runtime, rule = ladder
    policy = make_policy(*rule, exit_layers=runtime.manifest.exit_layers)
    batch = _batch(runtime, windows)
    _, followed = run_reference(torch_model.steps(), batch, policy)
    assert followed is not None

    runtime.set_policy(rule[0], **rule[1])
    got = runtime.forward(**{name: value.numpy() for name, value in vars(batch).items() if value is not None})

    assert not differing_rows(followed, got).any()
    real = batch.attention_mask.numpy() == 1
    assert np.abs(got.logits - followed.scores)[real].max() <= 1e-4
    assert len({tuple(path) for path in got.path.tolist()}) > (rule[0] == "bypass")


def test_ladder_bundle_agrees_with_torch(ladder: Any) -> None:
    torch_model, runtime, _ = ladder

    parity = compare(torch_model, open_bundle(runtime.bundle.path), samples=16, tolerance=1e-4, seed=5)

    assert (parity.decisions, parity.differing_decisions) == (16, 0)
    assert 0 < parity.max_difference <= 1e-4


@pytest.mark.parametrize(("size", "sort"), [(1, True), (3, False), (64, True)])
def test_ladder_window_gets_the_same_scores_whoever_its_mates_are(
    ladder: Any, windows: list[Window], size: int, sort: bool
) -> None:
    _, runtime, rule = ladder
    runtime.set_policy(rule[0], **rule[1])
    order = np.random.default_rng(size).permutation(len(windows))

    outcome = runtime.run_encoded([windows[i] for i in order], batch_size=size, sort=sort)

    for place, number in enumerate(order):
        alone = runtime.run_encoded([windows[number]])
        tokens = len(windows[number].ids)
        assert np.abs(outcome.scores[place, :tokens] - alone.scores[0]).max() <= 1e-5
        assert (outcome.path[place] == alone.path[0]).all()
    assert runtime.layer_rows(outcome.calls) == outcome.path.sum()


def test_ladder_padding_changes_nothing(ladder: Any, windows: list[Window]) -> None:
    _, runtime, rule = ladder
    runtime.set_policy(rule[0], **rule[1])
    values = runtime.pad(windows[:1])
    tokens = values["input_ids"].shape[1]

    short = runtime.forward(**values)
    longer = runtime.forward(**{name: np.pad(value, ((0, 0), (0, 13))) for name, value in values.items()})

    assert np.abs(short.logits - longer.logits[:, :tokens]).max() <= 1e-5
    assert (longer.logits[:, tokens:] == -1e4).all() or (short.path == longer.path).all()


def test_answer_is_that_of_the_task_on_torch(reader_checkpoint: Path, model: EdgeModel, questions_data: Path) -> None:
    questions = read_questions(questions_data, split="test")
    torch_model: Any = load_checkpoint(reader_checkpoint).model.eval()
    pairs = [(q.text, str(q.text_pair)) for q in questions]
    rows = model.encode(pairs)
    batch = _batch(model, list(rows))  # type: ignore[arg-type]
    with torch.no_grad():
        scores = torch_model(batch.input_ids, batch.attention_mask, batch.token_type_ids).numpy()
    expected = question_answering.ranked(scores, rows, ("start", "end"), 3)

    answers = model.answer([q for q, _ in pairs], [c for _, c in pairs], top_k=3, batch_size=5)

    assert [[span.text for span in answer.top or ()] for answer in answers] == [[c.text for c in e] for e in expected]
    assert [answer.score for answer in answers] == pytest.approx([e[0].score for e in expected], abs=1e-5)
    for answer, (_, context) in zip(answers, pairs, strict=True):
        assert context[answer.start : answer.end] == answer.text
        assert 0 < answer.score < 1
        assert len({span.text for span in answer.top or ()}) == 3


def test_answer_of_one_question_says_what_it_cost(model: EdgeModel) -> None:
    answer = model.answer("which is good ?", LONG)

    windows = model.encode([("which is good ?", LONG)])
    assert LONG[answer.start : answer.end] == answer.text
    assert answer.windows == len(windows) > 1
    assert answer.tokens == sum(len(row.ids) for row in windows)
    assert answer.layers_run == 3.0
    assert answer.cost_ratio == pytest.approx(1.0, abs=0.01)
    assert not answer.truncated
    assert answer.top is None
    assert "top" not in answer.to_dict()
    assert model.answer("good " * 20, LONG).truncated


def test_answer_many_questions_of_one_passage(model: EdgeModel) -> None:
    answers = model.answer(["which is good ?", "which is funny ?"], LONG, top_k=2)

    alone = [model.answer(question, LONG) for question in ("which is good ?", "which is funny ?")]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert [len(answer.to_dict()["top"]) for answer in answers] == [2, 2]
    assert model.answer([], LONG) == []


def test_answer_of_an_empty_passage_is_empty(model: EdgeModel) -> None:
    answer = model.answer("which is good ?", "")

    assert (answer.text, answer.score, answer.start, answer.end, answer.windows) == ("", 0.0, 0, 0, 1)


@given(cut=st.integers(1, 400), max_length=st.integers(12, 48))
def test_answer_is_always_words_of_the_passage(model: EdgeModel, cut: int, max_length: int) -> None:
    context = LONG[:cut]

    answer = model.answer("which ?", context, max_length=max_length)

    assert context[answer.start : answer.end] == answer.text == answer.text.strip()
    assert answer.text


def test_stream_of_questions(model: EdgeModel) -> None:
    pairs = [("which is good ?", LONG), ("who ?", "a good film"), ("which is bad ?", "a weak plot")]

    streamed = list(model.stream(iter(pairs), window=2))

    assert [answer.to_dict() for answer in streamed] == [model.answer(*pair).to_dict() for pair in pairs]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model("a text"),
        lambda model: model([("which ?", "a good film")]),
        lambda model: model.predict(["a text"]),
        lambda model: model.predict_proba(["a text"]),
    ],
)
def test_texts_given_to_a_reader_refused(model: EdgeModel, call: Callable[[EdgeModel], object]) -> None:
    with pytest.raises(ConfigError) as raised:
        call(model)

    assert "question_answering answers questions, and was given texts; use model.answer(" in str(raised.value)


def test_questions_given_to_a_classifier_refused(plain_bundle: Path) -> None:
    with EdgeModel.from_pretrained(plain_bundle) as model, pytest.raises(ConfigError) as raised:
        model.answer("which ?", "a good film")

    assert 'classification answers texts, and was given questions; use model("a text"), or ed' in str(raised.value)


def test_answer_refused(model: EdgeModel) -> None:
    with pytest.raises(DataError, match=r"^answer: expected a passage for each of 2 questions, got 1\.$"):
        model.answer(["a ?", "b ?"], ["x"])
    with pytest.raises(DataError, match=r"^context: expected one text for one question, got a list"):
        model.answer("a ?", ["x"])
    with pytest.raises(ConfigError, match=r"^top_k: expected 1 or more, got 0\.$"):
        model.answer("a ?", "x", top_k=0)
    with pytest.raises(DataError, match=r"^text 0: expected a question and its passage, got str 'a text'\.$"):
        list(model.stream(["a text"]))
    with pytest.raises(DataError, match=r"^text 1: expected a str or a pair of str, got int 5\.$"):
        model.answer(["a ?", 5], "x")  # type: ignore[list-item]
