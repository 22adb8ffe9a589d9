"""A command that is killed, wherever it is, leaves the old result or the new one; the next run cleans up."""

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.bundle import open_bundle
from edgebert.checkpoint import load_checkpoint
from edgebert.runtime.prepared import FOLDER_VARIABLE, check_prepared, find_prepared

Record = Callable[[str, object], None]
Rounds = Callable[[int, int], int]

BUNDLES = ("export", "quantize", "tune")
DETERMINISTIC = ("export", "single", "quantize", "train")


class Survivor:
    """A command that is ended again and again over an old result."""

    def __init__(self, forks: Any, writer: Any, name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forks, self.writer, self.name, self.bundle, self.monkeypatch = forks, writer, name, bundle, monkeypatch
        self.old = writer.contents()
        self.whole = self.run_to_the_end()
        self.new = writer.contents()
        self.found: Counter[str] = Counter()

    def run_to_the_end(self) -> Any:
        (ended,) = self.forks.run(self.writer.job())
        assert ended.code == 0, ended.messages
        assert self.writer.leftovers() == []
        self.check()
        return ended

    def end(self, *, tidy: bool = False, **how: Any) -> Any:
        """Ends the command over the old result, where others may have left something, and checks what it leaves."""
        self.writer.reset(tidy=tidy)
        (ended,) = self.forks.run(self.writer.job(**how))
        assert ended.code <= 0, ended.messages
        self.check()
        self.found[self.state()] += 1
        assert all(name.startswith(".") for name in self.writer.leftovers()), self.writer.leftovers()
        return ended

    def state(self) -> str:
        """Returns `old` or `new`, or, of files that no folder holds together, `both`; each is wholly one of them."""
        found = self.writer.contents()
        if found == self.old:
            return "old"
        if self.name in DETERMINISTIC:
            assert found == self.new
        elif self.name == "report":
            assert all(data in (self.old.get(name), self.new.get(name)) for name, data in found.items())
            return "new" if found.items() >= self.new.items() else "both"
        return "new"

    def check(self) -> None:
        """Opens the result and checks every byte of it."""
        target = self.writer.results[0]
        if self.name in BUNDLES:
            assert open_bundle(target).check_files() == []
        elif self.name == "train":
            load_checkpoint(target)
        elif self.name == "prepare":
            self.monkeypatch.setenv(FOLDER_VARIABLE, self.writer.environment[FOLDER_VARIABLE])
            prepared = find_prepared(open_bundle(self.bundle))
            assert prepared is not None
            check_prepared(prepared)

    def finish(self, record: Record, what: str) -> None:
        """Runs the command to its end over all that was left, and records how often it was ended."""
        self.run_to_the_end()
        record(f"{self.name} {what}", f"{self.found.total()} of {self.found.total()} whole: {dict(self.found)}")


@pytest.fixture
def survivor(
    forks: Any,
    make_writer: Any,
    tmp_path: Path,
    dact_checkpoint: Path,
    dact_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: Rounds,
) -> Callable[[str], Survivor]:
    def make(name: str) -> Survivor:
        is_full = bool(rounds(0, 1))
        writer = make_writer(name, tmp_path / name, checkpoint=is_full)
        if name == "export" and is_full:
            forks.warm_up(dact_checkpoint, tmp_path)
        return Survivor(forks, writer, name, dact_bundle, monkeypatch)

    return make


# In make test those that take seconds are left to the others: what they share is the same.
RANDOM = {"export": (2, 34), "quantize": (3, 33), "tune": (1, 33), "single": (2, 20), "prepare": (3, 40)}
SLOW = {"report": (0, 15), "train": (0, 12)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives tests the names of the commands they end."""
    is_full = metafunc.config.getoption("full")
    if metafunc.function is test_killed_at_a_random_moment:
        metafunc.parametrize("name", [*RANDOM, *(SLOW if is_full else ())])
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*RANDOM, *SLOW] if is_full else ["quantize"])


def test_killed_at_a_random_moment(
    survivor: Callable[[str], Survivor], rounds: Rounds, record_property: Record, name: str
) -> None:
    """Over the whole run, or within the writing: at a file operation, or as a file of a random size is written."""
    killed = survivor(name)
    largest = max(map(len, killed.writer.contents().values()))
    rng = np.random.default_rng(0)
    for number in range(rounds(*{**RANDOM, **SLOW}[name])):
        if number % 3 == 0:
            killed.end(ends_after_s=rng.uniform(0, killed.whole.seconds))
        elif number % 3 == 1:
            killed.end(ends_at=int(rng.integers(1, len(killed.whole.operations) + 1)))
        else:
            ended = killed.end(largest_file_bytes=int(rng.integers(1, largest)), dies_beyond=True)
            assert ended.code == -signal.SIGXFSZ
    killed.finish(record_property, "killed at random moments")


def test_killed_at_every_file_operation(
    survivor: Callable[[str], Survivor], rounds: Rounds, record_property: Record, name: str
) -> None:
    """Before each of them; in `make test` before some, and before and after the old and the new one change places."""
    killed = survivor(name)
    operations = killed.whole.operations
    swap = max(number for number, kind in enumerate(operations, 1) if kind in ("ctypes.dlopen", "os.rename"))
    tried = {1, swap, swap + 1, *range(len(operations), 0, -rounds(9, 1))}
    if name == "train":
        tried = {number for number in tried if number % 3 == 0}
    for operation in sorted(tried):
        killed.end(tidy=True, ends_at=operation)
    killed.finish(record_property, "killed at file operations")
    assert set(killed.found) >= {"old", "new"}


def test_killed_where_two_folders_cannot_be_swapped(
    survivor: Callable[[str], Survivor], rounds: Rounds, record_property: Record
) -> None:
    """There is a moment without a result under its name: the next writer puts the old one back."""
    killed = survivor("quantize")
    writer, moved_aside = killed.writer, 0
    writer.reset()
    (whole,) = killed.forks.run(writer.job(two_steps=True))
    renames = [number for number, kind in enumerate(whole.operations, 1) if kind == "os.rename"]
    tried = rounds(0, 1) * list(range(1, len(whole.operations) + 1))
    for operation in tried or [*renames, renames[-1] + 1]:
        writer.reset(tidy=True)
        killed.forks.run(writer.job(two_steps=True, ends_at=operation))
        if not writer.results[0].exists():
            moved_aside += 1
            (ended,) = killed.forks.run({**writer.job(two_steps=True), "arguments": writer.arguments[:-1]})
            assert ended.code == 1
            assert "exists already; use --force" in ended.error
        killed.check()
        killed.found[killed.state()] += 1
    assert moved_aside == 1
    killed.finish(record_property, "killed where folders cannot be swapped")


def test_told_to_end_cleans_up_at_once(
    forks: Any, make_writer: Any, tmp_path: Path, rounds: Rounds, record_property: Record, name: str
) -> None:
    writer = make_writer(name, tmp_path / name)
    before = writer.snapshot()
    (whole,) = forks.run(writer.job())
    ended_early = 0
    for operation in np.linspace(1, len(whole.operations), rounds(4, 12)).astype(int):
        writer.reset(tidy=True)
        (ended,) = forks.run(writer.job(ends_at=int(operation), signal=int(signal.SIGTERM)))
        assert ended.code in (0, 143)
        if ended.code:
            ended_early += 1
            assert ended.error == "error: ended by SIGTERM"
        # What --resume goes on from; and a lock that was just being made, which is empty and nobody's.
        left = [name for name in writer.leftovers() if not name.endswith(".lock")]
        assert left in ([], [".out.training"])
        if operation == 1:
            assert writer.snapshot() == before
    assert ended_early
    record_property(f"{name} ended by SIGTERM", f"{ended_early} cleaned up")


def test_killed_training_goes_on(
    forks: Any, make_writer: Any, tmp_path: Path, rounds: Rounds, record_property: Record
) -> None:
    """Killed anywhere, while it saves its state too, a training resumes to the weights of an uninterrupted one."""
    writer = make_writer("train", tmp_path / "train")
    old = writer.contents()
    (whole,) = forks.run(writer.job())
    assert whole.code == 0, whole.messages
    new = writer.contents()
    largest = max(map(len, new.values()))
    rng = np.random.default_rng(1)
    count = rounds(1, 24)
    for number in range(count):
        writer.reset()
        if number % 2:
            job = writer.job(ends_at=int(rng.integers(1, len(whole.operations) + 1)))
        else:
            job = writer.job(largest_file_bytes=int(rng.integers(1, 2 * largest)), dies_beyond=True)
        (ended,) = forks.run(job)
        assert ended.code in (0, -signal.SIGKILL, -signal.SIGXFSZ)
        assert writer.contents() in (old, new)
        (resumed,) = forks.run({**writer.job(), "arguments": [*writer.arguments, "--resume"]})
        assert resumed.code == 0, resumed.messages
        assert writer.contents() == new
        assert writer.leftovers() == []
    record_property("train killed and resumed", f"{count} of {count} gave the weights of an uninterrupted training")
