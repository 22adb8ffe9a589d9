"""Where messages and progress go: nowhere by default, or stderr when a command runs."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from edgebert.printable import printable

Advance = Callable[[int, str], None]
"""Moves a progress display on by a number of steps, with a short note."""

_PLAIN_INTERVAL_S = 15.0


class Reporter:
    """Says nothing. What functions that take long use unless told otherwise."""

    def say(self, text: str) -> None:
        """Tells the user one line."""

    @contextlib.contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        """Shows how far a long step is while the context lasts."""
        yield lambda steps, note: None


class ConsoleReporter(Reporter):
    """Writes to stderr: a progress bar on a terminal, now and then a plain line elsewhere."""

    def say(self, text: str) -> None:
        """Tells the user one line."""
        if sys.stderr is not None:  # it is where the process was started without one
            sys.stderr.write(printable(text) + "\n")
            sys.stderr.flush()

    @contextlib.contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        """Shows how far a long step is while the context lasts."""
        if sys.stderr is not None and sys.stderr.isatty():
            yield from self._bar(title, total)
        else:
            yield self._lines(title, total)

    def _bar(self, title: str, total: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda steps, note: bar.update(task, advance=steps, note=note)

    def _lines(self, title: str, total: int) -> Advance:
        done, last = 0, time.monotonic()

        def advance(steps: int, note: str) -> None:
            nonlocal done, last
            done += steps
            if time.monotonic() - last >= _PLAIN_INTERVAL_S:
                last = time.monotonic()
                self.say(f"{title}: {done}/{total} {note}".rstrip())

        return advance


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, its columns padded so that it reads well as plain text too.

    Whatever a cell holds, it steers no terminal; see `printable`.
    """
    cells = [[printable(str(cell)).replace("|", "\\|") for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Returns plain data as JSON that stdout can take: in ASCII where its encoding lacks a character.

    JSON has no NaN and no infinity: they become null.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json_text(_finite(value), indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _finite(value: object) -> object:
    """Returns plain data with null for every number that is none."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
