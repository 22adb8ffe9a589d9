"""Reading a bundle's files safely: regular ones only, opened once."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from edgebert.errors import BundleError


def read_regular(root: Path, name: str, *, limit: int) -> bytes:
    """Returns the bytes of a file in a folder, opened once.

    Symbolic links are refused, but for a hub cache's snapshot, whose files may link into its own `blobs` folder.

    Args:
        root: The folder.
        name: Path inside it, with forward slashes.
        limit: Most bytes the file may have.

    Raises:
        BundleError: It is missing, not a regular file, reached through a link, or too large.
    """
    path = _unlinked(root, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"{root / name}: {error.strerror}; the bundle is incomplete.") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise BundleError(f"{root / name}: expected a regular file.")
    with open(descriptor, "rb") as file:
        if facts.st_size > limit:
            raise BundleError(f"{root / name}: expected at most {limit} bytes, got {facts.st_size}.")
        return file.read(limit + 1)


def _unlinked(root: Path, name: str) -> Path:
    """Returns the path to open: itself, or the blob that a hub cache's snapshot links to."""
    path = root
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            blobs = root.absolute().parent.parent / "blobs"
            target = path.resolve()
            if path != root / name or target.parent != blobs.resolve():
                raise BundleError(f"{path}: expected a file of the bundle itself, got a symbolic link.")
            return target
    return path


def list_files(root: Path) -> set[str]:
    """Returns the paths of everything in a folder that is not hidden, with forward slashes."""
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        found.update((relative / name).as_posix() for name in names if not name.startswith("."))
    return found


def sha256(data: bytes) -> str:
    """Returns the hexadecimal sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
