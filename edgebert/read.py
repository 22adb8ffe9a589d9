"""Reading single files: regular ones only, of a bounded size, so that no pipe or device is waited for."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edgebert.errors import EdgeBertError
from edgebert.printable import shown

LARGEST_DATA_BYTES = 8 * 2**30
"""Data is read as a whole; a table larger than this would not fit beside what is made of it."""

LARGEST_SETTINGS_BYTES = 2**18
"""Of what people write, and programs for people to read; YAML of this size can take two seconds."""


def read_file(path: Path, *, largest_bytes: int, error: type[EdgeBertError]) -> bytes:
    """Returns the bytes of a regular file, or of what a link leads to if that is one.

    Args:
        path: The file.
        largest_bytes: What it may have at most.
        error: What is raised where it cannot be read.

    Raises:
        EdgeBertError: Of the kind asked for; see `open_file`.
    """
    with open_file(path, largest_bytes=largest_bytes, error=error) as file:
        try:
            data = file.read(largest_bytes + 1)
        except OSError as cause:
            raise error(f"{path}: cannot read the file ({reason_of(cause)}).") from cause
    if len(data) > largest_bytes:
        raise error(f"{path}: expected at most {largest_bytes} bytes, got more.")
    return data


@contextmanager
def open_file(path: Path, *, largest_bytes: int, error: type[EdgeBertError]) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Raises:
        EdgeBertError: Of the kind asked for: the file is not there, is of another kind, is too large, or the system
            does not let it be read.
    """
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115  # what is done with it must not be caught here
    except (OSError, ValueError) as cause:
        raise error(f"{path}: cannot read the file ({reason_of(cause)}).") from cause
    with file:
        _check_kind(path, os.fstat(file.fileno()), largest_bytes, error)
        yield file


def read_object(path: Path, *, error: type[EdgeBertError]) -> dict[str, Any]:
    """Returns the JSON object of a small file of settings.

    Raises:
        EdgeBertError: Of the kind asked for: it cannot be read, or holds something else.
    """
    data = read_file(path, largest_bytes=LARGEST_SETTINGS_BYTES, error=error)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: cannot be read as JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise error(f"{path}: expected settings by name, got {shown(found)}.")
    return found


def is_folder(path: Path, *, error: type[EdgeBertError]) -> bool | None:
    """Says whether a path is a folder; None where there is nothing of its name.

    Raises:
        EdgeBertError: Of the kind asked for: the system cannot say, such as for a link that leads to itself.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as cause:
        raise error(f"{path}: cannot be looked at ({reason_of(cause)}).") from cause


def reason_of(cause: Exception) -> str:
    """Returns what the system says of a file, without repeating its name."""
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


def _open(path: str, flags: int) -> int:
    # Opening a pipe that nobody writes to would wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_kind(path: Path, facts: os.stat_result, largest_bytes: int, error: type[EdgeBertError]) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise error(f"{path}: expected a file, got a pipe or device; save what it gives to a file.")
    if facts.st_size > largest_bytes:
        raise error(f"{path}: expected at most {largest_bytes} bytes, got {facts.st_size}.")
