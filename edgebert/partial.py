"""What is being written lies beside its target under a hidden name until it is whole, and a lock says who writes.

The lock is a file, `.NAME.lock`, which its holder removes. The system lets it go when its process dies, however that
dies, in another container too. So whoever holds it knows that what else lies there half-written (`.NAME.partial-*`) was
left by a process that is gone, and removes it. Where the system has no such locks, it is left alone and named.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgebert.errors import ConfigError, EdgeBertError

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_CHUNK_BYTES = 1 << 20
_BUNDLE_MARK, _SIGNATURE_NAME = "edgebert.json", "model.sig"
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_LEFT = re.compile(r"\.(?P<name>.+)\.partial-[0-9a-f]{8}(?P<old>-old)?")


def why_not_writable(folder: Path) -> str | None:
    """Returns why nothing can be written into a folder, as the end of a sentence; None where something can."""
    if not folder.is_dir():
        return "does not exist"
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    return "is on a read-only file system" if os.statvfs(folder).f_flag & os.ST_RDONLY else "is not writable"


def check_place(target: Path, sources: Iterable[str | Path] = ()) -> None:
    """Checks that writing there destroys nothing it is made from, and no bundle, which takes no files but its own.

    Args:
        target: The folder or file to write.
        sources: What it is made from; what is not there, such as a hub id, is passed over.

    Raises:
        ConfigError: It is, or holds, one of the sources, or lies inside a bundle.
    """
    place = Path(os.path.realpath(target))
    for source in sources:
        if os.path.exists(source) and Path(os.path.realpath(source)).is_relative_to(place):
            what = "is" if os.path.samefile(source, place) else "holds"
            raise ConfigError(f"{target}: {what} the input {source}, which writing there would destroy; name another.")
    for folder in place.parents:
        if (folder / _BUNDLE_MARK).is_file() and place != folder / _SIGNATURE_NAME:
            raise ConfigError(f"{target}: is inside the bundle {folder}, which takes no other files; name one outside.")


@contextlib.contextmanager
def writing(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other writers of a target away while the context lasts, and removes what those that died left of it.

    An old folder that one of them had already moved aside, with nothing in its place yet, is put back.

    Args:
        target: The folder or file that is written; it need not exist.
        wait: Wait for another writer to end.

    Raises:
        EdgeBertError: Another process is writing it, or nothing can be written beside it.
    """
    lock = target.with_name(f".{target.name.removeprefix('.')}.lock")
    try:
        descriptor = _hold(lock, wait=wait)
    except BlockingIOError as error:
        raise EdgeBertError(
            f"{target}: another process is writing it (it holds {lock.name}); try again when it is done."
        ) from error
    except OSError as error:
        raise EdgeBertError(f"{target}: cannot write {lock.name} beside it: {error.strerror}.") from error
    if descriptor is None:
        _name_leftovers(target)
        yield
        return
    try:
        _clean(target)
        yield
    finally:
        try:
            _clean(target)  # an interruption may have come before, or within, a writer's own cleaning up
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def clean_folder(folder: Path) -> None:
    """Removes what writers that died left in a folder, of any target, but for targets that are being written now."""
    targets = {match["name"] for path in folder.iterdir() if (match := _LEFT.fullmatch(path.name))}
    for name in sorted(targets):
        with contextlib.suppress(EdgeBertError), writing(folder / name):
            pass


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside a target for what is needed on the way to it, and removes it at the end.

    Raises:
        EdgeBertError: It cannot be made, or another process is using it.
    """
    beside = target.with_name(f"{target.name}.scratch")
    with writing(beside):
        folder = make_partial_folder(beside)
        try:
            yield folder
        finally:
            remove(folder)


def make_partial_folder(target: Path) -> Path:
    """Makes a new hidden folder beside a target, with the permissions that new folders of this process get.

    Raises:
        EdgeBertError: It cannot be made.
    """
    partial = _partial_name(target)
    try:
        partial.mkdir()
        partial.chmod(stat.S_IMODE(partial.stat().st_mode) | 0o700)
    except OSError as error:
        raise EdgeBertError(f"{target}: cannot write beside it: {error.strerror}.") from error
    return partial


def write_partial_file(target: Path, data: bytes) -> Path:
    """Writes a new hidden file beside a target, down to the disk; raises OSError, with nothing left, if it cannot."""
    partial = _partial_name(target)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        remove(partial)
        raise
    return partial


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there; a warning names what cannot be removed."""
    _remove_tree(path)
    if os.path.lexists(path):
        # A folder that was read-only keeps what is in it until it no longer is.
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        _remove_tree(path)
    if os.path.lexists(path):
        warnings.warn(f"{path}: cannot be removed and is left over; remove it by hand.", RuntimeWarning, stacklevel=2)


def discard(path: Path, target: Path) -> None:
    """Removes a folder that belongs to a target in one step: no half of it is ever found under its name.

    Raises:
        EdgeBertError: It cannot be removed.
    """
    aside = _partial_name(target)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgeBertError(f"{path}: cannot be removed: {error.strerror}.") from error
    try:
        remove(aside)
    except BaseException:
        remove(aside)  # an interruption is no reason to leave it
        raise


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False where the system cannot."""
    return _rename(first, second, _RENAME_EXCHANGE)


def move_to_new(partial: Path, target: Path) -> None:
    """Moves a file to where nothing is; raises FileExistsError where something is."""
    if not _rename(partial, target, _RENAME_NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        partial.rename(target)


def synchronise(folder: Path) -> None:
    """Writes everything in a folder down to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            synchronise_file(Path(root) / name)
        synchronise_names(Path(root))


def synchronise_file(path: Path) -> None:
    """Writes a file down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synchronise_names(folder: Path) -> None:
    """Writes the names in a folder down to the disk, where its file system can and the folder may be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def check_room(folder: Path, size_bytes: int) -> None:
    """Writes so many bytes into a folder and removes them; raises OSError where that is not possible.

    For what libraries wrote that do not say why they failed.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, size_bytes, _CHUNK_BYTES):
            file.write(bytes(min(_CHUNK_BYTES, size_bytes - start)))
        file.flush()
        os.fsync(file.fileno())


def moved_aside(partial: Path) -> Path:
    """Returns where the old folder waits while the new one, which was written there, takes its place in two steps."""
    return partial.with_name(f"{partial.name}-old")


def _partial_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")


def _hold(lock: Path, *, wait: bool) -> int | None:
    """Returns the descriptor of a lock that is held, or None where the system has none.

    Raises:
        BlockingIOError: Somebody else holds it.
        OSError: Its file cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Who held it before has removed its file: then this lock is nobody's, and there may be a new one.
            if _is_file(descriptor, lock):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _leftovers(target: Path) -> Iterator[tuple[Path, bool]]:
    """Gives what is half-written of a target, and whether it is an old one that was moved aside."""
    try:
        names = sorted(os.listdir(target.parent))
    except OSError:
        return  # it may be written to, and not be read
    for match in filter(None, map(_LEFT.fullmatch, names)):
        if match["name"] == target.name:
            yield target.with_name(match[0]), match["old"] is not None


def _clean(target: Path) -> None:
    """Removes what is left of a target whose lock is held, or puts it back."""
    for path, is_old in _leftovers(target):
        if is_old and not os.path.lexists(target):
            _put_back(path, target)
        else:
            remove(path)


def _name_leftovers(target: Path) -> None:
    for path, _ in _leftovers(target):
        warnings.warn(
            f"{path}: left by a writer that may still be at work; remove it if none is.", RuntimeWarning, stacklevel=5
        )


def _put_back(old: Path, target: Path) -> None:
    try:
        old.rename(target)
    except OSError as error:
        raise EdgeBertError(f"{target}: was moved to {old}, and cannot be moved back: {error.strerror}.") from error


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _rename(first: Path, second: Path, flags: int) -> bool:
    """Renames with flags of Linux; False where the system or the file system does not know them."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(second))
