"""Writing single files: checked before the work, and there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from edgebert.errors import EdgeBertError
from edgebert.partial import (
    check_place,
    move_to_new,
    remove,
    synchronise_names,
    why_not_writable,
    write_partial_file,
    writing,
)

_UNTOUCHED = "what was there is untouched"


def check_file(path: Path, *, force: bool, sources: Iterable[str | Path] = ()) -> None:
    """Checks, before any work, that a file may be written.

    Args:
        path: The file.
        force: Whether one that is there may be replaced.
        sources: What it is made from, which is never replaced.

    Raises:
        ConfigError: It is one of the sources, or lies inside a bundle.
        EdgeBertError: Its folder is missing or not writable, or something is there that may not be replaced.
    """
    try:
        check_place(path, sources)
        _check_parent(path)
        if path.exists() and not path.is_file():
            raise EdgeBertError(f"{path}: exists and is not a file.")
        if path.exists() and not force:
            raise EdgeBertError(f"{path}: exists already; use --force to replace it.")
    except OSError as error:
        raise EdgeBertError(f"{path}: {error.strerror}.") from error


def check_folder(folder: Path, names: Sequence[str], *, force: bool, sources: Sequence[str | Path] = ()) -> None:
    """Checks, before any work, that files may be written into a folder, which may still have to be made.

    Raises:
        ConfigError: One is among the sources, from which they are made, or they would lie inside a bundle.
        EdgeBertError: They may not.
    """
    if not folder.exists():
        check_place(folder)
        _check_parent(folder)
    elif not folder.is_dir():
        raise EdgeBertError(f"{folder}: exists and is not a folder.")
    else:
        for name in names:
            check_file(folder / name, force=force, sources=sources)


def write_file(path: Path, content: str | bytes, *, force: bool) -> None:
    """Writes a text or bytes, under another name until it is complete; see `write_files`."""
    write_files({path: content}, force=force)


def write_files(contents: Mapping[Path, str | bytes], *, force: bool) -> None:
    """Writes files that belong together, under other names until all of them are complete.

    Each is there whole or not at all, and only a process that dies while they take their places leaves some of them
    new and some old. Two processes that write the same files take turns. Links are followed, and stay.

    Args:
        contents: What to write, as text or bytes, by path.
        force: Replace files that are there.

    Raises:
        EdgeBertError: One cannot be written, or is there already; what was there is untouched.
    """
    data = {path: text.encode() if isinstance(text, str) else text for path, text in contents.items()}
    places = {path: Path(os.path.realpath(path)) for path in data}
    if len(set(places.values())) < len(places):
        raise EdgeBertError(f"expected a file each, got the same one twice: {', '.join(map(str, sorted(places)))}.")
    with contextlib.ExitStack() as stack:
        for path in sorted(places, key=places.__getitem__):
            check_file(path, force=force)
            stack.enter_context(writing(places[path], wait=True))
            check_file(path, force=force)
        partials = {}
        for path, place in places.items():
            with _named(path):
                partials[path] = write_partial_file(place, data[path])
                stack.callback(remove, partials[path])
                if force and place.exists():
                    partials[path].chmod(stat.S_IMODE(place.stat().st_mode))
        for number, (path, partial) in enumerate(partials.items()):
            done = f"{number} of {len(partials)} files are new" if number else _UNTOUCHED
            with _named(path, done):
                partial.replace(places[path]) if force else move_to_new(partial, places[path])
        for folder in {place.parent for place in places.values()}:
            with _named(folder, "the new files are there, but the disk may lose them"):
                synchronise_names(folder)


@contextlib.contextmanager
def _named(path: Path, state: str = _UNTOUCHED) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeBertError(f"{path}: {error.strerror or error}; {state}.") from error


def _check_parent(path: Path) -> None:
    parent = Path(os.path.realpath(path)).parent
    if reason := why_not_writable(parent):
        raise EdgeBertError(f"{path}: its folder {parent} {reason}.")
