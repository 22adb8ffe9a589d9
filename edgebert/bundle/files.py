"""Reading a bundle's files safely, and publishing a new folder so that a reader sees the old one or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgebert.errors import BundleError, EdgeBertError

MAX_FILES = 4000
"""Most files of a bundle."""

_MARKS = ("edgebert.json", "edgebert.yaml", "edgebert.txt")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def read_regular(root: Path, name: str, *, limit: int) -> bytes:
    """Returns the bytes of a file in a folder, opened once.

    Symbolic links are refused, but for a hub cache's snapshot, whose files may link into its own `blobs` folder. The
    folder itself is named by the user and may be a link.

    Args:
        root: The folder.
        name: Path inside it, with forward slashes.
        limit: Most bytes the file may have.

    Raises:
        BundleError: It is missing, cannot be read, is not a regular file, reached through a link, or too large.
    """
    try:
        path = _unlinked(root, name)
        if not stat.S_ISREG(path.lstat().st_mode):  # before it is opened: opening a device may do something
            raise BundleError(
                f"{root / name}: expected a regular file; remove what is there and copy the bundle again."
            )
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{root / name}: expected a regular file.")
            if facts.st_size > limit:
                raise BundleError(f"{root / name}: expected at most {limit} bytes, got {facts.st_size}.")
            return file.read(facts.st_size + 1)
    except OSError as error:
        raise BundleError(f"{root / name}: {error.strerror}; {_cure(error)}.") from error


def _cure(error: OSError) -> str:
    """Says what to do about a file that cannot be read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "the bundle is incomplete: copy it again"
    return "make it readable, or copy the bundle again"


def _unlinked(root: Path, name: str) -> Path:
    """Returns the path to open: itself, or the blob that a hub cache's snapshot links to."""
    path = root
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            snapshots = root.absolute().parent
            blobs = snapshots.parent / "blobs"
            is_snapshot = snapshots.name == "snapshots" and not blobs.is_symlink()
            target = path.resolve()
            if not is_snapshot or path != root / name or target.parent != blobs.resolve():
                raise BundleError(
                    f"{path}: expected a file of the bundle itself, got a symbolic link; put the file in its place."
                )
            return target
    return path


def list_files(root: Path) -> set[str]:
    """Returns the paths of everything in a folder that is not hidden, with forward slashes.

    Links, and folders deeper than any of a bundle, are listed as they are and not looked into. Of more files than a
    bundle may have, some are left out.

    Raises:
        BundleError: A folder cannot be read.
    """
    found: set[str] = set()
    folders = [""]
    while folders and len(found) <= MAX_FILES:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in itertools.islice(
                    (entry for entry in entries if not entry.name.startswith(".")), MAX_FILES
                ):
                    name = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False) and not folder:
                        folders.append(f"{name}/")
                    else:
                        found.add(name)
        except OSError as error:
            raise BundleError(f"{root / folder}: {error.strerror}; make it readable.") from error
    return found


def sha256(data: bytes) -> str:
    """Returns the hexadecimal sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def check_target(target: Path, *, force: bool) -> None:
    """Checks, before any work, that a folder may be published there.

    With `force` only a folder that edgebert made is replaced, known by `edgebert.json`, `edgebert.yaml` or
    `edgebert.txt`; never a repository, the working directory or a folder around it.

    Raises:
        EdgeBertError: The parent is missing or not writable, or what is there may not be replaced.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise EdgeBertError(f"{target}: its parent folder does not exist.")
    if not os.access(parent, os.W_OK):
        raise EdgeBertError(f"{target}: its parent folder is not writable.")
    if target.exists() and not target.is_dir():
        raise EdgeBertError(f"{target}: exists and is not a folder.")
    if target.exists() and any(target.iterdir()):
        if not force:
            raise EdgeBertError(f"{target}: exists already; use --force to replace it.")
        here = Path.cwd().resolve()
        is_ours = any((target / name).is_file() for name in _MARKS) and not (target / ".git").exists()
        if not is_ours or target.resolve() in (here, *here.parents):
            raise EdgeBertError(f"{target}: holds nothing that edgebert made, so --force does not replace it.")


@contextlib.contextmanager
def publish(target: Path, *, force: bool) -> Iterator[Path]:
    """Gives a new folder beside the target to write into, and puts it in the target's place at the end.

    An exception leaves the target as it was, and so does a process that dies where the system can swap two folders
    (Linux); elsewhere there is a moment in which the old folder has a hidden name beside it.

    Args:
        target: The folder to make or replace.
        force: Whether an existing one may be replaced.

    Raises:
        EdgeBertError: The target cannot be written.
    """
    check_target(target, force=force)
    target = target.absolute()
    _remove_leftovers(target)
    prefix = f".{target.name}.partial-{os.getpid()}-"
    try:
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise EdgeBertError(f"{target}: cannot write beside it: {error.strerror}.") from error
    try:
        partial.chmod(0o755)
        yield partial
        _make_readable(partial)
        _synchronise(partial)
        _put_in_place(partial, target, force=force)
    except OSError as error:
        raise EdgeBertError(f"{target}: {error.strerror or error}; what was there is untouched.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Gives every file the usual permissions, whatever the library that wrote it chose."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    if _is_new(partial, target):
        pass
    elif not force:
        raise EdgeBertError(f"{target}: somebody else made it meanwhile; use --force to replace it.")
    elif not _exchange(partial, target):
        old = partial.with_name(partial.name + "-old")
        target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _synchronise_folder(target.parent)


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


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step where the system can; afterwards `first` holds the old content."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _remove_leftovers(target: Path) -> None:
    """Removes what processes that are gone left half-written beside the target."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"(\d+)-\w+")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match.group(1))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _synchronise(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _synchronise_folder(Path(root))


def _synchronise_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
