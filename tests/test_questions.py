import json
from pathlib import Path
from typing import Any

import pytest

from edgebert.data import texts_of
from edgebert.errors import ConfigError, DataError
from edgebert.questions import Gold, read_question, read_questions

PASSAGE = "Plymouth lies between the Plym and the Tamar."


def _squad(*answers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    asked = {"id": "q7", "question": "Which river?", "answers": list(answers), **changes}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": [asked]}]}]}


def _write(path: Path, tree: object) -> Path:
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return path


def test_read_questions_with_several_answers(tmp_path: Path) -> None:
    tree = _squad({"text": "Plym", "answer_start": 26}, {"text": "the Plym", "answer_start": 22})

    (question,) = read_questions(_write(tmp_path / "x.json", tree))

    assert texts_of([question]) == [("Which river?", PASSAGE)]
    assert question.answers == (Gold("Plym", 26), Gold("the Plym", 22))


@pytest.mark.parametrize(("split", "questions"), [("train", 120), ("validation", 24), ("dev", 24), ("test", 24)])
def test_read_questions_of_a_folder(questions_data: Path, split: str, questions: int) -> None:
    read = read_questions(questions_data, split=split)

    assert len(read) == questions
    assert len({question.passage for question in read}) == questions // 2
    assert len({(question.passage, question.text_pair) for question in read}) == questions // 2
    assert all(len(question.answers) == 2 for question in read)


def test_read_questions_lines_have_no_answers(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", '{"question": "a?", "context": "b"}\n{"context": "d", "question": "c?"}\n')

    read = read_questions(path, require_answers=False)

    assert texts_of(read) == [("a?", "b"), ("c?", "d")]
    assert len({question.passage for question in read}) == 2
    with pytest.raises(DataError, match=r"question 1 \('a\?'\): expected an answer, got none"):
        read_questions(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", _squad({"text": "Tamar", "answer_start": 26}), "question q7: expected the answer 'Tamar' at char"),
        (
            "x.json",
            _squad({"text": "Plym", "answer_start": -19}),
            "expected the answer 'Plym' at character -19, got ''",
        ),
        ("x.json", _squad({"text": "", "answer_start": 3}), "expected the answer '' at character 3, got ''"),
        ("x.json", _squad(), "question 1 ('Which river?'): expected an answer, got none; leave it out (unanswerable"),
        ("x.json", {"data": [{"paragraphs": [{"context": "x", "qas": []}]}]}, "expected at least one question, got no"),
        ("x.json", {"rows": []}, "expected the JSON of SQuAD v1.1"),
        ("x.json", "{", "expected the JSON of SQuAD v1.1"),
        ("x.jsonl", '{"question": "a?"}', 'x.jsonl:1: expected {"question": "...", "context": "..."}, got'),
        ("x.tsv", "text\tlabel", "expected SQuAD's .json or a .jsonl of questions, got .tsv"),
    ],
)
def test_read_questions_malformed(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read_questions(_write(tmp_path / name, content))

    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / name))


def test_read_questions_without_blank_lines(tmp_path: Path) -> None:
    line = '{"question": "q", "context": "c"}\n'
    path = tmp_path / "x.jsonl"
    path.write_text(f"{line}\n{line}\n", encoding="utf-8")

    assert len(read_questions(path, require_answers=False)) == 2


def test_read_questions_nothing_there(tmp_path: Path, questions_data: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: no such file; questions are read from"):
        read_questions(tmp_path / "nothing.json")
    with pytest.raises(DataError, match=r"expected one file train\.json, got nothing; add it"):
        read_questions(tmp_path, split="train")
    with pytest.raises(ConfigError, match="say which split to read"):
        read_questions(questions_data)


def test_read_question_line() -> None:
    assert read_question('{"context": "c", "question": "q", "id": 3}', where="x") == ("q", "c")
    with pytest.raises(DataError, match=r"^stdin:4: expected .* got 'plain text'"):
        read_question("plain text", where="stdin:4")
