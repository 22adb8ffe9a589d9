"""A disk that is full, at whatever byte, leaves the old result as it was and nothing else, and is named in one line."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Record = Callable[[str, object], None]
Rounds = Callable[[int, int], int]

# In make test, training is tried where it fails in every library that writes.
SHORT = ("export", "single", "quantize", "prepare")
LONG = ("tune", "report", "train")
PAGE_BYTES = 4096
MESSAGES_BYTES = 2048  # what the command says goes into a file too


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives tests the names of the commands."""
    if "name" in metafunc.fixturenames:
        is_short = metafunc.function is test_files_that_may_not_grow
        metafunc.parametrize(
            "name", [*SHORT, *(LONG if metafunc.config.getoption("full") else LONG[-1:] if is_short else ())]
        )


def _fails(forks: Any, writer: Any, reasons: tuple[str, ...], **how: Any) -> None:
    """Runs a command that cannot write what it has to, and checks what it says and leaves."""
    writer.reset()
    before = writer.snapshot()
    (ended,) = forks.run(writer.job(**how))
    assert ended.code == 1, ended.messages
    assert str(writer.watch) in ended.error or f" {tempfile.gettempdir()}: " in ended.error, ended.error
    assert any(reason in ended.error for reason in reasons), ended.error
    assert "a bug" not in ended.error
    assert writer.snapshot() == before
    is_resumable = writer.arguments[0] == "train"
    assert set(writer.leftovers()) <= ({".out.training"} if is_resumable else set())
    if is_resumable:
        shutil.rmtree(writer.watch / ".out.training", ignore_errors=True)


def test_no_room(
    forks: Any,
    make_writer: Any,
    small_disk: Path | None,
    tmp_path: Path,
    rounds: Rounds,
    record_property: Record,
    name: str,
) -> None:
    """On a file system with so many bytes left; where none can be mounted, files cannot grow beyond so many."""
    folder = (small_disk or tmp_path) / name
    writer = make_writer(name, folder)
    (whole,) = forks.run(writer.job())
    assert whole.code == 0, whole.messages
    written = sorted(len(data) for data in writer.contents().values())
    needed = sum(written) if small_disk else written[-1]
    tries = np.linspace(0, 0.8 * needed, rounds(2, 12)).astype(int)
    for left in tries:
        writer.reset()
        if small_disk is None:
            _fails(forks, writer, ("File too large",), largest_file_bytes=max(int(left), MESSAGES_BYTES))
            continue
        filler = small_disk / "filler"
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(max(free - int(left) // PAGE_BYTES * PAGE_BYTES, 0)))
        _fails(forks, writer, ("No space left on device",))
        filler.unlink()
    (ended,) = forks.run(writer.job())
    assert ended.code == 0, ended.messages
    assert writer.leftovers() == []
    record_property(
        f"{name} {'disk full' if small_disk else 'files too large'}", f"{len(tries)} of {len(tries)} refused"
    )


def test_files_that_may_not_grow(
    forks: Any, make_writer: Any, tmp_path: Path, rounds: Rounds, record_property: Record, name: str
) -> None:
    """Fails in the middle of the largest file, and of every library that writes one."""
    writer = make_writer(name, tmp_path / name)
    (whole,) = forks.run(writer.job())
    assert whole.code == 0, whole.messages
    largest = max(len(data) for data in writer.contents().values())
    tries = np.linspace(largest - 1, MESSAGES_BYTES, rounds(2, 8)).astype(int)
    for limit in tries:
        _fails(forks, writer, ("File too large",), largest_file_bytes=int(limit))
    record_property(f"{name} files too large", f"{len(tries)} of {len(tries)} refused")


def test_output_to_a_full_disk(forks: Any, dact_bundle: Path) -> None:
    (ended,) = forks.run({"arguments": ["info", str(dact_bundle), "--json"], "output": "/dev/full"})

    assert ended.code == 1
    assert ended.error == "error: output: No space left on device"
