"""The texts of `edgebert run`, and its answers as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from edgebert.data import read_examples, texts_of
from edgebert.errors import DataError
from edgebert.output import markdown_table
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import Prediction
from edgebert.text import Text

_CELL_WIDTH = 60


def read_texts(
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    source: str | None,
    *,
    columns: Mapping[str, str] | None = None,
) -> Iterable[Text]:
    """Returns the inputs of a run: arguments and pairs, the texts of a file, or the lines of stdin as they come.

    Args:
        texts: Texts given as arguments.
        pairs: Pairs given as options.
        source: A file, or `-` for stdin, in the place of the others.
        columns: Which column of the file is which field.

    Raises:
        DataError: There is nothing to read, or the file cannot be read.
    """
    if source is not None and (texts or pairs):
        raise DataError("give either texts or -i, not both.")
    if source == "-":
        return (line.decode("utf-8", "replace").rstrip("\r\n") for line in sys.stdin.buffer)
    if source is not None:
        examples = read_examples(source, split="test", columns=columns, require_labels=False)
        return texts_of(examples)
    if not texts and not pairs:
        raise DataError("no text: give texts, --pair A B, or -i FILE (- reads stdin).")
    return [*texts, *pairs]


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
        texts: Texts or pairs.
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
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif rows:
        click.echo(markdown_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows]))
    return truncated


def _print_json_line(row: dict[str, Any], is_first: bool) -> None:
    click.echo(json.dumps(row, ensure_ascii=False))


def _print_csv_line(row: dict[str, Any], is_first: bool) -> None:
    flat = {key: _cell(value) if isinstance(value, list | tuple) else value for key, value in row.items()}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if is_first:
        writer.writerow(flat)
    writer.writerow(flat.values())


_LINES: dict[str, Callable[[dict[str, Any], bool], None]] = {"jsonl": _print_json_line, "csv": _print_csv_line}


def _answers(
    texts: Iterable[Text], model: EdgeModel, top_k: int | None, window: int
) -> Iterator[tuple[Text, Prediction]]:
    """Answers a stream, each text beside its answer."""
    waiting: deque[Text] = deque()

    def remembered() -> Iterator[Text]:
        for text in texts:
            waiting.append(text)
            yield text

    for prediction in model.stream(remembered(), top_k=top_k, window=window):
        yield waiting.popleft(), prediction


def _row(text: Text, prediction: Prediction, trace: bool) -> dict[str, Any]:
    fields = prediction.to_dict()
    names = list(fields) if trace else [name for name in ("label", "score", "layers_run", "top") if name in fields]
    shown = text if isinstance(text, str) else " / ".join(text)
    return {"text": shown, **{name: fields[name] for name in names}}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, list):
        return ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in value)
    text = str(value)
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 3] + "..."
