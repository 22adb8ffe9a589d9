"""Reads questions over passages: SQuAD v1.1 files in their own JSON, and JSON lines without answers."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgebert.arguments import check_path
from edgebert.data import Example, names_in, stems_of
from edgebert.errors import ConfigError, DataError
from edgebert.read import is_folder
from edgebert.tables import numbered_lines, read_data


class Gold(msgspec.Struct, frozen=True):
    """An answer that counts as right: its text, and its first character in the passage."""

    text: str
    start: int


class Question(Example, frozen=True):
    """A question, `text`, over a passage, `text_pair`.

    Attributes:
        answers: The answers that count as right, the one to learn first. None at all: not known.
        passage: A number that all questions over one passage share.
    """

    answers: tuple[Gold, ...] = ()
    passage: int = 0

    @property
    def is_labelled(self) -> bool:
        """Whether an answer is known."""
        return bool(self.answers)


class _Answer(msgspec.Struct):
    text: str
    answer_start: int


class _Asked(msgspec.Struct):
    question: str
    id: str = "without an id"
    answers: list[_Answer] = []


class _Paragraph(msgspec.Struct):
    context: str
    qas: list[_Asked]


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]


class _Squad(msgspec.Struct):
    data: list[_Article]


class _Line(msgspec.Struct):
    question: str
    context: str


def read_questions(source: str | Path, *, split: str | None = None, require_answers: bool = True) -> list[Question]:
    """Reads all questions of a source, in its order.

    Args:
        source: A .json file in the form of SQuAD v1.1; a .jsonl file with an object {"question", "context"} a line,
            which has no answers; or a folder with a train.json, validation.json (or dev.json) and test.json.
        split: Which file of the folder; ignored for a file.
        require_answers: Whether a question without an answer is an error.

    Raises:
        DataError: The source does not exist or is of another form, an answer does not stand where it should, or there
            is none where one is needed; names the file and the question.
        ConfigError: The source is a folder and no split is given.
    """
    path = _find(check_path("data", source), split)
    questions = list(_lines(path) if path.suffix.lower() == ".jsonl" else _squad(path))
    if not questions:
        raise DataError(f"{path}: expected at least one question, got none.")
    for number, question in enumerate(questions, start=1):
        if require_answers and not question.answers:
            raise DataError(
                f"{path}: question {number} ({question.text!r:.60}): expected an answer, got none; leave it out "
                "(unanswerable questions, as in SQuAD v2, are not supported)."
            )
    return questions


def read_question(line: str, *, where: str) -> tuple[str, str]:
    """Returns the question and the passage of one JSON line.

    Raises:
        DataError: It is not an object with the texts `question` and `context`.
    """
    try:
        asked = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise DataError(
            f'{where}: expected {{"question": "...", "context": "..."}}, got {line[:40]!r:.40} ({error}).'
        ) from error
    return asked.question, asked.context


def _find(path: Path, split: str | None) -> Path:
    is_there = is_folder(path, error=DataError)
    if is_there:
        if split is None:
            raise ConfigError(f"{path}: is a folder: say which split to read (train, validation or test).")
        found = [file for stem in stems_of(split) if (file := path / f"{stem}.json").is_file()]
        if len(found) != 1:
            raise DataError(
                f"{path}: expected one file {split}.json, got {names_in(path)}; add it, or pass the file itself."
            )
        return found[0]
    if is_there is None:
        raise DataError(f"{path}: no such file; questions are read from SQuAD's .json or from .jsonl.")
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(f"{path}: expected SQuAD's .json or a .jsonl of questions, got {path.suffix or 'no ending'}.")
    return path


def _squad(path: Path) -> Iterator[Question]:
    data = read_data(path).removeprefix(codecs.BOM_UTF8)
    try:
        articles = msgspec.json.decode(data, type=_Squad).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected the JSON of SQuAD v1.1 (data, paragraphs, qas, answers): {error}."
        ) from error
    paragraphs = (paragraph for article in articles for paragraph in article.paragraphs)
    for number, paragraph in enumerate(paragraphs):
        for asked in paragraph.qas:
            for answer in asked.answers:
                _check_place(answer, paragraph.context, f"{path}: question {asked.id}")
            golds = tuple(Gold(answer.text, answer.answer_start) for answer in asked.answers)
            yield Question(asked.question, paragraph.context, None, golds, number)


def _check_place(answer: _Answer, passage: str, where: str) -> None:
    start = answer.answer_start
    got = passage[start : start + len(answer.text)] if start >= 0 else ""
    if got != answer.text or not got:
        raise DataError(f"{where}: expected the answer {answer.text!r:.60} at character {start}, got {got!r:.60}.")


def _lines(path: Path) -> Iterator[Question]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        yield Question(*read_question(line, where=f"{path}:{number}"), None, (), number)
