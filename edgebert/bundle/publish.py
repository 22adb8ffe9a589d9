"""Publishing a new folder so that a reader sees the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from edgebert.errors import EdgeBertError
from edgebert.partial import (
    check_place,
    exchange,
    make_partial_folder,
    moved_aside,
    remove,
    synchronise,
    synchronise_names,
    why_not_writable,
    writing,
)

Kind = Literal["bundle", "checkpoint", "demo"]
"""What edgebert makes folders of."""

_MARKS: dict[Kind, str] = {"bundle": "edgebert.json", "checkpoint": "edgebert.yaml", "demo": "edgebert.txt"}


def check_target(target: Path, *, force: bool, kind: Kind | None = None, sources: Iterable[str | Path] = ()) -> None:
    """Checks, before any work, that a folder may be published there.

    With `force` only a folder that edgebert made is replaced, known by `edgebert.json`, `edgebert.yaml` or
    `edgebert.txt`, and only by one of the same kind; never a repository, the working directory or a folder around it.

    Args:
        target: The folder to make or replace.
        force: Whether an existing one may be replaced.
        kind: What is published; None replaces any kind.
        sources: What it is made from, which is never replaced.

    Raises:
        ConfigError: It is, or holds, one of the sources, or lies inside a bundle.
        EdgeBertError: The parent is missing or not writable, or what is there may not be replaced.
    """
    try:
        check_place(target, sources)
        _check_target(target, force=force, kind=kind)
    except OSError as error:
        raise EdgeBertError(f"{target}: {error.strerror}.") from error


def _check_target(target: Path, *, force: bool, kind: Kind | None) -> None:
    if reason := why_not_writable(_followed(target).parent):
        raise EdgeBertError(f"{target}: its parent folder {reason}.")
    if target.exists() and not target.is_dir():
        raise EdgeBertError(f"{target}: exists and is not a folder.")
    if target.is_dir() and os.path.ismount(target):
        raise EdgeBertError(f"{target}: is where a file system is mounted, so it cannot be replaced; name one inside.")
    if target.exists() and any(target.iterdir()):
        if not force:
            raise EdgeBertError(f"{target}: exists already; use --force to replace it.")
        here = Path.cwd().resolve()
        made = _kind_of(target)
        if made is None or (target / ".git").exists() or target.resolve() in (here, *here.parents):
            raise EdgeBertError(f"{target}: holds nothing that edgebert made, so --force does not replace it.")
        if kind not in (None, made):
            raise EdgeBertError(f"{target}: is a {made}, so --force does not replace it by a {kind}; name another.")


def _kind_of(folder: Path) -> Kind | None:
    """Returns what edgebert made of a folder; None where it did not make it."""
    return next((kind for kind, name in _MARKS.items() if (folder / name).is_file()), None)


@contextlib.contextmanager
def publish(target: Path, *, force: bool) -> Iterator[Path]:
    """Gives a new folder beside the target to write into, and puts it in the target's place at the end.

    An exception leaves the target as it was, and so does a process that dies where the system can swap two folders
    (Linux); elsewhere there is a moment in which the old folder has a hidden name beside it, and the next writer puts
    it back. What a process that died left is removed by the next one. A link is followed, and stays.

    Args:
        target: The folder to make or replace.
        force: Whether an existing one may be replaced.

    Raises:
        ConfigError: The target lies inside a bundle.
        EdgeBertError: The target cannot be written, or another process is writing it, or what is there is of another
            kind than what was written.
    """
    target = _followed(target)
    check_target(target, force=force)
    with writing(target):
        check_target(target, force=force)
        partial = make_partial_folder(target)
        try:
            yield partial
            _settle_permissions(partial, target)
            synchronise(partial)
            check_target(target, force=force, kind=_kind_of(partial))
            _put_in_place(partial, target, force=force)
        except OSError as error:
            raise EdgeBertError(f"{target}: {_reason(error, partial)}; what was there is untouched.") from error
        finally:
            remove(partial)
        try:
            synchronise_names(target.parent)
        except OSError as error:
            raise EdgeBertError(f"{target}: is replaced, but the disk may lose it: {error.strerror}.") from error


def _followed(target: Path) -> Path:
    """Returns the path itself, absolute, or where a link leads."""
    return Path(os.path.realpath(target))


def _reason(error: OSError, partial: Path) -> str:
    """Returns what went wrong, and with which file where that is none of those that are being written."""
    reason = error.strerror or str(error)
    path = error.filename
    is_elsewhere = isinstance(path, str) and not Path(path).absolute().is_relative_to(partial.parent)
    return f"{path}: {reason}" if is_elsewhere else reason


def _settle_permissions(folder: Path, target: Path) -> None:
    """Gives every file the permissions of new ones of this process, whatever the library that wrote it chose.

    Others are never let write. A folder that is replaced hands its own on.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o7755
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o644)
    folder.chmod(stat.S_IMODE(target.stat().st_mode) if target.is_dir() else mode)


def _put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    if _is_new(partial, target):
        return
    if not force:
        raise EdgeBertError(f"{target}: somebody else made it meanwhile; use --force to replace it.")
    if exchange(partial, target):
        return
    old = moved_aside(partial)
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    remove(old)


def _is_new(partial: Path, target: Path) -> bool:
    """Moves a folder to where nothing is; says whether nothing was, in the very moment of moving."""
    if target.exists() and any(target.iterdir()):
        return False
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
