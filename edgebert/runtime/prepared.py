"""The prepared cache: a bundle's graphs as this machine's ONNX Runtime wants them, in files it maps instead of reads.

Loading a graph from a bundle optimises it and lays its weights out for this processor, in memory of the process's own.
Prepared graphs were laid out once: their weights lie in files that are mapped, so that they cost no private memory,
are shared by all processes that use them, and need not be loaded at all before they are read.

What is prepared belongs to one machine: its folder is named after the graphs (and not after how they are tuned or
described), the version of ONNX Runtime and the processor's features. It is made beside its place and moved there, so
that two processes at once do no harm, and it is trusted because it lies in a folder of this user's own that nobody else
can enter, and its files have the sizes and times they were made with; `check_prepared` hashes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnxruntime

from edgebert.bundle import Bundle
from edgebert.bundle.publish import publish
from edgebert.errors import BundleError, EdgeBertError
from edgebert.partial import check_room, clean_folder, discard, remove, why_not_writable, writing
from edgebert.processor import cpu_features
from edgebert.runtime.sessions import make_options, open_session, release_memory

FORMAT = "edgebert.prepared/1"
FACTS_NAME = "edgebert.json"
FOLDER_VARIABLE = "EDGEBERT_CACHE"

_SMALLEST_MAPPED_BYTES = 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class PreparedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prepared file as it was made: bytes, time of its last change in ns, and sha256."""

    bytes: int
    mtime_ns: int
    sha256: str


class PreparedFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was prepared.

    Attributes:
        format: Of these facts.
        onnxruntime: The version that laid the weights out.
        cpu: The processor's features it did so for.
        graphs: The name of each graph's file, by its path in the bundle.
        files: Every file but this one, by name.
    """

    format: str
    onnxruntime: str
    cpu: str
    graphs: dict[str, str]
    files: dict[str, PreparedFile]


@dataclass(frozen=True)
class Prepared:
    """The prepared graphs of a bundle: their folder, and each one's file by its path in the bundle."""

    folder: Path
    facts: PreparedFacts

    @property
    def graphs(self) -> dict[str, Path]:
        """Where the graphs lie, by path in the bundle."""
        return {path: self.folder / name for path, name in self.facts.graphs.items()}

    def find(self, path: str) -> Path | None:
        """Returns where a graph lies, if its files are still as they were made; None where they are not."""
        try:
            if all(_is_as_made(self.folder / name, file) for name, file in self._files_of(path).items()):
                return self.folder / self.facts.graphs[path]
        except (OSError, BundleError):
            pass
        return None

    def laid_out_bytes(self, path: str, graph_bytes: int) -> int:
        """Returns how much of a graph's files is read when it runs: what is laid out, and not the weights as they were.

        Args:
            path: The graph, by its path in the bundle.
            graph_bytes: Its size there.
        """
        return max(graph_bytes, sum(file.bytes for file in self._files_of(path).values()) - graph_bytes)

    def _files_of(self, path: str) -> dict[str, PreparedFile]:
        stem = Path(self.facts.graphs[path]).stem
        return {name: file for name, file in self.facts.files.items() if Path(name).stem == stem}

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk."""
        return sum(file.bytes for file in self.facts.files.values())


def cache_folder() -> Path:
    """Returns where graphs are prepared: `$EDGEBERT_CACHE`, else `edgebert` in the user's cache folder.

    Raises:
        BundleError: The user has none.
    """
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "edgebert"
    try:
        return Path.home() / ".cache" / "edgebert"
    except RuntimeError as error:
        raise BundleError(f"there is no home folder to prepare in; say where with {FOLDER_VARIABLE}.") from error


def prepared_folder(bundle: Bundle) -> Path:
    """Returns where a bundle's graphs lie once they are prepared for this machine."""
    key = f"{FORMAT}\n{bundle.manifest.graphs_digest}\n{onnxruntime.__version__}\n{_cpu()}\n"
    return cache_folder() / "prepared" / hashlib.sha256(key.encode()).hexdigest()[:32]


def find_prepared(bundle: Bundle) -> Prepared | None:
    """Returns a bundle's prepared graphs; None where there are none, or their files are not as they were made.

    Raises:
        BundleError: They lie in a folder, or are files, that somebody else could change.
    """
    try:
        folder = prepared_folder(bundle)
    except BundleError:
        return None  # where there is no place for them there are none
    try:
        _check_owner(folder.parent, private=True)
        _check_owner(folder)
        facts = msgspec.json.decode((folder / FACTS_NAME).read_bytes(), type=PreparedFacts)
        if not all(_NAME.fullmatch(name) for name in facts.files):
            return None  # nothing outside of the folder is looked at
        if not all(_is_as_made(folder / name, file) for name, file in facts.files.items()):
            return None
    except (OSError, msgspec.DecodeError):
        return None
    if facts.format != FORMAT or set(facts.graphs) != set(_graphs(bundle)):
        return None
    if not set(facts.graphs.values()) <= set(facts.files):
        return None
    return Prepared(folder, facts)


def usable_prepared(bundle: Bundle) -> Prepared | None:
    """Returns a bundle's prepared graphs; None, with a warning, where they are not to be trusted."""
    try:
        return find_prepared(bundle)
    except BundleError as error:
        warnings.warn(f"prepared graphs are not used: {error}", RuntimeWarning, stacklevel=2)
        return None


def prepare_bundle(bundle: Bundle, *, force: bool = False) -> Prepared:
    """Prepares a bundle's graphs for this machine, unless that was done, and returns them.

    Args:
        bundle: The bundle.
        force: Prepare them again.

    Raises:
        BundleError: A file of the bundle is damaged, or the cache could be changed by somebody else.
        EdgeBertError: The cache cannot be written.
    """
    if not force and (found := find_prepared(bundle)) is not None:
        return found
    folder = prepared_folder(bundle)
    _make_private(folder.parent)
    with _preparing(folder):
        if not force and (found := find_prepared(bundle)) is not None:
            return found
        if folder.is_dir() and not (folder / FACTS_NAME).exists():
            remove(folder)  # damaged: nothing says whose it is, but it lies in our own folder
        try:
            with publish(folder, force=True) as partial:
                _write(bundle, partial)
        finally:
            release_memory()
        found = find_prepared(bundle)
    clean_folder(folder.parent)
    if found is None:
        raise EdgeBertError(f"{folder}: changed while it was being prepared; try again.")
    return found


def _preparing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Lets one process at a time prepare into a folder: the next one waits, and finds what it wanted."""
    return writing(folder.with_name(f"{folder.name}.preparing"), wait=True)


def remove_prepared(bundle: Bundle) -> bool:
    """Removes a bundle's prepared graphs for this machine; says whether there were any.

    Raises:
        BundleError: They lie where somebody else could change them.
        EdgeBertError: They cannot be removed.
    """
    folder = prepared_folder(bundle)
    if not folder.exists():
        return False
    _check_owner(folder.parent, private=True)
    with _preparing(folder):
        discard(folder, folder)
    return True


def check_prepared(prepared: Prepared) -> None:
    """Hashes every prepared file.

    Raises:
        BundleError: One is not as it was made.
    """
    for name, file in prepared.facts.files.items():
        if _sha256(prepared.folder / name) != file.sha256:
            raise BundleError(
                f"{prepared.folder / name}: changed since it was prepared (sha256 differs); prepare it again: "
                "edgebert prepare BUNDLE --force"
            )


def _write(bundle: Bundle, folder: Path) -> None:
    graphs = {}
    for number, path in enumerate(_graphs(bundle)):
        stem = f"{number:03d}_{Path(path).stem}"
        options = make_options(1)
        options.optimized_model_filepath = str(folder / f"{stem}.onnx")
        for key, value in {
            "session.optimized_model_external_initializers_file_name": f"{stem}.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALLEST_MAPPED_BYTES),
            "session.save_external_prepacked_constant_initializers": "1",
        }.items():
            options.add_session_config_entry(key, value)
        data = bundle.read(path)
        try:
            open_session(data, str(bundle.path / path), options, [("CPUExecutionProvider", {})])
        except BundleError as error:
            check_room(folder, 4 * len(data))  # ONNX Runtime does not say that it could not write
            raise EdgeBertError(f"{folder.parent}: cannot prepare {path}: {error}") from error
        graphs[path] = f"{stem}.onnx"
    files = {}
    for file in sorted(folder.iterdir()):
        found = file.stat()
        files[file.name] = PreparedFile(bytes=found.st_size, mtime_ns=found.st_mtime_ns, sha256=_sha256(file))
    facts = PreparedFacts(format=FORMAT, onnxruntime=onnxruntime.__version__, cpu=_cpu(), graphs=graphs, files=files)
    (folder / FACTS_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))


def _graphs(bundle: Bundle) -> list[str]:
    """Returns the graphs of the program, each once."""
    return list(dict.fromkeys(step.graph for step in bundle.manifest.program if step.graph is not None))


def _cpu() -> str:
    return f"{platform.system()} {platform.machine()} {' '.join(sorted(cpu_features()))}"


def _make_private(folder: Path) -> None:
    """Makes a folder that only this user can enter."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeBertError(
            f"{folder}: cannot be made: {error.strerror}; say where to prepare with {FOLDER_VARIABLE}."
        ) from error
    _check_owner(folder, private=True)
    if reason := why_not_writable(folder):
        raise EdgeBertError(f"{folder}: {reason}; say where to prepare with {FOLDER_VARIABLE}.")


def _is_as_made(path: Path, file: PreparedFile) -> bool:
    found = _check_owner(path)
    return (found.st_size, found.st_mtime_ns) == (file.bytes, file.mtime_ns)


def _check_owner(path: Path, *, private: bool = False) -> os.stat_result:
    """Returns what the system says of a file or folder, if it is this user's and nobody else can change it.

    Where the system knows no owners, everything passes.

    Args:
        path: The file or folder itself, not what it links to.
        private: Whether nobody else may even look into it.

    Raises:
        BundleError: Somebody else's, a link, or open to others.
    """
    found = path.lstat()
    if not hasattr(os, "getuid"):
        return found
    forbidden = 0o077 if private else 0o022
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & forbidden:
        raise BundleError(
            f"{path}: expected a {'folder' if stat.S_ISDIR(found.st_mode) else 'file'} of this user's own that nobody "
            f"else can {'enter' if private else 'change'} (mode {0o700 if private else 0o755:o}), got mode "
            f"{stat.S_IMODE(found.st_mode):o}, owner {found.st_uid}; remove it, or say where with {FOLDER_VARIABLE}."
        )
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with contextlib.closing(path.open("rb")) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
