"""Where nothing may be written, a command says where and why, at once, and changes nothing."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ("export", "single", "quantize", "tune", "prepare", "report", "train")
NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def _refused(forks: Any, writer: Any, reasons: tuple[str, ...], **how: Any) -> None:
    before = writer.snapshot()
    (ended,) = forks.run(writer.job(**how))
    assert ended.code == 1, ended.messages
    assert str(writer.watch) in ended.error
    assert any(reason in ended.error for reason in reasons), ended.error
    assert "a bug" not in ended.error
    assert writer.snapshot() == before
    assert writer.leftovers() == []


def _inputs_for_everybody(writer: Any, open_folder: Path) -> list[str]:
    """Returns the arguments with every input copied to where every user can read it."""
    arguments = []
    for number, argument in enumerate(writer.arguments):
        path = Path(argument)
        if path.is_absolute() and not path.is_relative_to(writer.watch):
            copy = open_folder / f"input-{number}{path.suffix}"
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
            argument = str(copy)
        arguments.append(argument)
    for path in open_folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_no_permission(forks: Any, make_writer: Callable[..., Any], open_folder: Path, name: str) -> None:
    """As an ordinary user, in a folder of somebody else's that it may read."""
    if name == "prepare":
        return _no_permission_to_prepare(forks, make_writer, open_folder)
    writer = make_writer(name, open_folder / "place")
    arguments = _inputs_for_everybody(writer, open_folder)
    writer.watch.chmod(0o555)
    is_root = os.geteuid() == 0
    _refused(
        forks,
        writer,
        ("is not writable",),
        arguments=arguments,
        **({"user": NOBODY} if is_root else {}),
    )
    return None


def _no_permission_to_prepare(forks: Any, make_writer: Callable[..., Any], open_folder: Path) -> None:
    """The cache is private, so that it is its own user who may not write into it."""
    writer = make_writer("prepare", open_folder / "place")
    arguments = _inputs_for_everybody(writer, open_folder)
    folder = writer.results[0].parent
    user = {}
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        user = {"user": NOBODY}
    folder.chmod(0o500)
    _refused(forks, writer, ("is not writable; say where to prepare with EDGEBERT_CACHE",), arguments=arguments, **user)
    folder.chmod(0o700)


@pytest.mark.parametrize("name", COMMANDS)
def test_read_only_file_system(
    forks: Any, make_writer: Callable[..., Any], small_disk: Path | None, open_folder: Path, name: str
) -> None:
    """On one that is mounted read-only; where none can be mounted, the same without permission."""
    if small_disk is None:
        test_no_permission(forks, make_writer, open_folder, name)
        return
    writer = make_writer(name, small_disk / name)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    _refused(forks, writer, ("is on a read-only file system",))


@pytest.mark.parametrize("name", COMMANDS)
def test_below_a_file(forks: Any, make_writer: Callable[..., Any], tmp_path: Path, name: str) -> None:
    writer = make_writer(name, tmp_path / name)
    (tmp_path / name / "file").write_text("a file")
    result = str(writer.results[0])
    below = str(tmp_path / name / "file" / writer.results[0].name)
    job = writer.job()
    if name == "tune":
        job["arguments"] = [*job["arguments"], "-o", below]
    elif name == "prepare":
        job["environment"] = {"EDGEBERT_CACHE": below}
    else:
        job["arguments"] = [below if argument == result else argument for argument in job["arguments"]]
    before = writer.snapshot()

    (ended,) = forks.run(job)

    assert ended.code == 1, ended.messages
    assert str(tmp_path / name / "file") in ended.error
    assert "does not exist" in ended.error or "Not a directory" in ended.error
    assert writer.snapshot() == before
    assert writer.leftovers() in (["file"], [])
    assert (tmp_path / name / "file").read_text() == "a file"
