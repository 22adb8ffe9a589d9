"""Writing single files: checked before the work, and there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgebert.errors import EdgeBertError


def check_file(path: Path, *, force: bool) -> None:
    """Checks, before any work, that a file may be written.

    Raises:
        EdgeBertError: Its folder is missing or not writable, or something is there that may not be replaced.
    """
    _check_parent(path)
    if path.exists() and not path.is_file():
        raise EdgeBertError(f"{path}: exists and is not a file.")
    if path.exists() and not force:
        raise EdgeBertError(f"{path}: exists already; use --force to replace it.")


def check_folder(folder: Path, names: Sequence[str], *, force: bool) -> None:
    """Checks, before any work, that files may be written into a folder, which may still have to be made.

    Raises:
        EdgeBertError: They may not.
    """
    if not folder.exists():
        _check_parent(folder)
    elif not folder.is_dir():
        raise EdgeBertError(f"{folder}: exists and is not a folder.")
    else:
        for name in names:
            check_file(folder / name, force=force)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a text or bytes, under another name until it is complete.

    Raises:
        EdgeBertError: It cannot be written; what was there is untouched.
    """
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.absolute().parent)
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise EdgeBertError(f"{path}: {error.strerror or error}; what was there is untouched.") from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _check_parent(path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise EdgeBertError(f"{path}: its folder {parent} does not exist.")
    if not os.access(parent, os.W_OK):
        raise EdgeBertError(f"{path}: its folder {parent} is not writable.")
