"""The texts or questions of `edgebert run`, and its answers as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import codecs
import csv
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from edgebert.data import names_in, texts_of
from edgebert.errors import DataError
from edgebert.output import json_text, markdown_table
from edgebert.read import is_folder
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import Answer, Prediction
from edgebert.tables import read_data
from edgebert.tasks import Task
from edgebert.text import LARGEST_TEXT, Text, readable

_CELL_WIDTH = 60
_LONGEST_LINE = 8 * LARGEST_TEXT
_SHOWN = ("label", "answer", "score", "start", "end", "windows", "layers_run", "top")
"""What is shown of a result without `--trace`."""


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was given to answer; one of the three is set.

    Attributes:
        texts: Texts and pairs.
        questions: Questions with their passages.
        source: A file, or `-` for stdin.
    """

    texts: list[Text]
    questions: list[tuple[str, str]]
    source: str | None

    def inputs(self, model: EdgeModel, *, columns: Mapping[str, str] | None = None) -> Iterable[Text]:
        """Returns what a model is to answer: that which was given, that of a file, or lines of stdin as they come.

        Args:
            model: The model; its task reads the file.
            columns: Which column of the file is which field.

        Raises:
            ConfigError: The model does not answer what was given.
            DataError: The file cannot be read.
        """
        if self.source == "-":
            return _stdin_lines(model.task)
        if self.source is not None:
            return texts_of(model.task.read(self.source, split="test", columns=columns, require_labels=False))
        model.check_asked("questions" if self.questions else "texts")
        return self.questions or self.texts


def read_given(
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    questions: Sequence[str],
    context: str | None,
    source: str | None,
    *,
    has_columns: bool = False,
) -> Given:
    """Returns what the options of a run mean.

    Args:
        texts: Texts given as arguments.
        pairs: Pairs given as options.
        questions: Questions given as options.
        context: Their passage, or @ and a file that holds it.
        source: A file, or `-` for stdin, in the place of the others.
        has_columns: Whether it is said which of its columns is which.

    Raises:
        DataError: There is nothing to answer, too much, a folder, columns of what has none, or a text or passage cannot
            be read.
    """
    kinds = [bool(texts or pairs), bool(questions or context is not None), source is not None]
    if sum(kinds) > 1:
        raise DataError("give either texts, or --question and --context, or -i, not both.")
    if not any(kinds):
        raise DataError("no text: give texts, --pair A B, --question Q --context TEXT, or -i FILE (- reads stdin).")
    if bool(questions) != (context is not None):
        raise DataError("a question needs a passage: give --question Q with --context TEXT (or @FILE).")
    if has_columns and source in (None, "-"):
        got = "texts" if source is None else "lines of stdin"
        raise DataError(f"--columns: names the columns of a table, got {got}; give -i FILE, or leave it out.")
    if source is not None and is_folder(Path(source), error=DataError):
        raise DataError(f"-i {source}: is a folder; name a file of it ({names_in(Path(source))}).")
    passage = _read_passage(context or "")
    return Given(
        texts=[*map(_as_utf8, texts), *((_as_utf8(first), _as_utf8(second)) for first, second in pairs)],
        questions=[(_as_utf8(question), passage) for question in questions],
        source=source,
    )


def _as_utf8(argument: str) -> str:
    """Returns an argument of the command line as UTF-8, whatever the locale made of it."""
    try:
        data = os.fsencode(argument)
    except UnicodeEncodeError:
        return argument
    return _decoded(data, where=f"text {argument!r:.40}")


def _decoded(data: bytes, *, where: str) -> str:
    """Returns the text of bytes, which are UTF-8, or are refused as those of a file are."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"the byte 0x{error.object[error.start]:02x}"
        raise DataError(f"{where}: expected UTF-8, got {got}; write it as UTF-8.") from error


def _read_passage(context: str) -> str:
    if not context.startswith("@"):
        return _as_utf8(context)
    data = read_data(Path(context[1:]))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--context {context}: expected UTF-8: {error}; save the file as UTF-8.") from error


def _stdin_lines(task: Task) -> Iterator[Text]:
    if sys.stdin is None:
        raise DataError("stdin: is closed; give texts, or -i FILE.")
    number, lines = 0, iter(partial(sys.stdin.buffer.readline, _LONGEST_LINE + 1), b"")
    for number, line in enumerate(lines, start=1):
        if len(line) > _LONGEST_LINE:
            raise DataError(f"stdin:{number}: expected lines of at most {_LONGEST_LINE} bytes, got a longer one.")
        text = _decoded(line.removeprefix(codecs.BOM_UTF8 if number == 1 else b""), where=f"stdin:{number}")
        yield task.read_line(text.rstrip("\r\n"), where=f"stdin:{number}")
    if not number:
        raise DataError("stdin:1: expected at least one line, got the end; give texts, or -i FILE.")


def print_answers(
    texts: Iterable[Text],
    model: EdgeModel,
    *,
    form: str,
    trace: bool = False,
    top_k: int | None = None,
    window: int = 256,
) -> int:
    """Prints answers to stdout: JSON lines and CSV as they come, a table or one JSON object at the end.

    Args:
        texts: Texts or pairs, or questions with their passages.
        model: Answers them.
        form: `table`, `json`, `jsonl` or `csv`.
        trace: Show what each answer cost.
        top_k: Show this many labels.
        window: Texts read ahead before the first answer; 1 answers each as it comes.

    Returns:
        How many texts were truncated.
    """
    truncated = 0
    rows = []
    lines = _LINES.get(form)
    for number, (text, prediction) in enumerate(_answers(texts, model, top_k, window)):
        truncated += prediction.truncated
        row = _row(text, prediction, trace)
        if lines is not None:
            lines(row, number == 0)
        else:
            rows.append(row)
    if form == "json":
        answer = {"schema": "edgebert.run/1", "policy": model.policy.policy, "rows": rows}
        click.echo(json_text(answer, indent=2))
    elif rows:
        click.echo(markdown_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows]))
    return truncated


def _print_json_line(row: dict[str, Any], is_first: bool) -> None:
    click.echo(json_text(row))


def _print_csv_line(row: dict[str, Any], is_first: bool) -> None:
    flat = {key: _cell(value) if isinstance(value, list | tuple) else value for key, value in row.items()}
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if is_first:
        writer.writerow(flat)
    writer.writerow(flat.values())
    click.echo(lines.getvalue(), nl=False)


_LINES: dict[str, Callable[[dict[str, Any], bool], None]] = {"jsonl": _print_json_line, "csv": _print_csv_line}


def _answers(
    texts: Iterable[Text], model: EdgeModel, top_k: int | None, window: int
) -> Iterator[tuple[Text, Prediction | Answer]]:
    """Answers a stream, each text beside its answer."""
    waiting: deque[Text] = deque()

    def remembered() -> Iterator[Text]:
        for text in texts:
            waiting.append(text)
            yield text

    for prediction in model.stream(remembered(), top_k=top_k, window=window):
        yield waiting.popleft(), prediction


def _row(text: Text, result: Prediction | Answer, trace: bool) -> dict[str, Any]:
    fields = result.to_dict()
    given = {"text": readable(text if isinstance(text, str) else " / ".join(text))}
    if isinstance(result, Answer):
        given, fields = {"question": readable(text[0])}, {"answer": fields.pop("text"), **fields}
    names = list(fields) if trace else [name for name in _SHOWN if name in fields]
    return {**given, **{name: fields[name] for name in names}}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, list):
        return ", ".join(f"{entry.get('label', entry.get('text'))} {entry['score']:.3f}" for entry in value)
    text = str(value)
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 3] + "..."
