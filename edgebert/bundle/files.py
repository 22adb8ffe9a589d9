"""Reading a bundle's files safely: regular ones only, opened once."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from pathlib import Path

from edgebert.errors import BundleError

MAX_FILES = 4000
"""Most files of a bundle."""


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
        descriptor = os.open(path, _flags())
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{root / name}: expected a regular file.")
            if facts.st_size > limit:
                raise BundleError(f"{root / name}: expected at most {limit} bytes, got {facts.st_size}.")
            return file.read(facts.st_size + 1)
    except OSError as error:
        raise BundleError(f"{root / name}: {error.strerror}; {_cure(error)}.") from error


def _flags() -> int:
    """Returns how a file is opened: no link is followed and no pipe waited for, and Windows translates no line end."""
    wanted = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # none of them is there on every system
    return os.O_RDONLY | sum(getattr(os, name, 0) for name in wanted)


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
