"""How often a fault is tried: a few seeded times in `make test`, as often as it takes in `make faults`.

And commands that write, run in processes of their own that can be ended anywhere.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import yaml

from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME
from edgebert.evaluate import evaluate_bundle
from edgebert.report import write_report
from edgebert.runtime.prepared import FOLDER_VARIABLE, prepare_bundle

Rounds = Callable[[int, int], int]
Edit = Callable[[dict[str, Any]], object]
Reseal = Callable[..., None]
EditGraph = Callable[..., None]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Returns the first of two counts in `make test`, the second with `--full`."""
    is_full = bool(request.config.getoption("full"))
    return lambda short, full: full if is_full else short


@dataclass(frozen=True)
class Ended:
    """What became of a command: its code (negative: the signal it died of), what it said, and what it did."""

    code: int
    messages: str
    operations: list[str]
    seconds: float

    @property
    def error(self) -> str:
        """The one line that a command fails with."""
        lines = [line for line in self.messages.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.messages
        assert "Traceback" not in self.messages
        return lines[0]


class Forks:
    """A process that has imported everything and runs commands in forks; see `_forks.py`."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *jobs: dict[str, Any]) -> list[Ended]:
        """Runs jobs at once and waits for all of them."""
        return [Ended(**ended) for ended in self._ask(jobs)]

    def warm_up(self, checkpoint: Path, folder: Path) -> None:
        """Exports once, so that no fork has to get ready for it."""
        self._ask({"warm": [str(checkpoint), str(folder / "warm")]})

    def _ask(self, message: object) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs commands in forks of a process that has imported everything."""
    made = Forks()
    yield made
    made.close()


@dataclass(frozen=True)
class Writer:
    """A command that writes, in a folder of its own.

    Attributes:
        arguments: Of the command, which replaces what is there.
        results: What it writes, in the folder.
        watch: The folder.
        old: What was there before it, as it was first made.
        environment: What it needs.
    """

    arguments: list[str]
    results: list[Path]
    watch: Path
    old: Path
    environment: dict[str, str] = field(default_factory=dict)

    def job(self, **more: Any) -> dict[str, Any]:
        """Returns the command as `Forks` takes it."""
        return {"arguments": self.arguments, "watch": str(self.watch), "environment": self.environment, **more}

    def reset(self, *, tidy: bool = False) -> None:
        """Puts the old results back; leftovers stay unless it is to be tidy."""
        for name in self.leftovers() if tidy else ():
            for path in {result.with_name(name) for result in self.results}:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for result in self.results:
            before = self.old / result.relative_to(self.watch)
            if result.is_dir():
                shutil.rmtree(result)
            else:
                result.unlink(missing_ok=True)
            if before.is_dir():
                shutil.copytree(before, result)
            elif before.exists():
                shutil.copy2(before, result)

    def snapshot(self) -> dict[str, tuple[bytes, int]]:
        """Returns the bytes and the time of the last change, in ns, of every file of the results, by name."""
        inside = [path for result in self.results if result.is_dir() for path in result.rglob("*")]
        files = [path for path in [*self.results, *inside] if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.watch)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def contents(self) -> dict[str, bytes]:
        """Returns the bytes of every file of the results, by name."""
        return {name: data for name, (data, _) in self.snapshot().items()}

    def leftovers(self) -> list[str]:
        """Returns what lies beside the results, and what is hidden in them."""
        folders = {result.parent for result in self.results if result.parent.is_dir()}
        beside = [path for folder in folders for path in folder.iterdir() if path not in self.results]
        hidden = [path for result in self.results for path in result.rglob(".*")]
        return sorted(path.name for path in [*beside, *hidden])


MakeWriter = Callable[..., Writer]


@pytest.fixture(scope="session")
def two_results(tmp_path_factory: pytest.TempPathFactory, dact_bundle: Path, sentiment_data: Path) -> list[Path]:
    """Two results of `edgebert eval --json` that give other pictures."""
    folder = tmp_path_factory.mktemp("two-results")
    made = []
    for number, policies in enumerate((["default", "never"], ["confidence", "never"])):
        result = evaluate_bundle([dact_bundle], [sentiment_data / "test.tsv"], policies=policies, threads=1)
        made.append(folder / f"{number}.json")
        made[-1].write_text(json.dumps(result), encoding="utf-8")
    return made


@pytest.fixture
def make_writer(
    dact_bundle: Path,
    dact_checkpoint: Path,
    plain_bundle: Path,
    plain_checkpoint: Path,
    two_results: list[Path],
    tiny_hf_folder: Path,
    sentiment_data: Path,
    tmp_path: Path,
) -> MakeWriter:
    """Makes a command that writes, by name, in a folder, with other results of its kind there already."""

    def make(name: str, folder: Path, *, checkpoint: bool = False) -> Writer:
        folder.mkdir(exist_ok=True)
        target, environment = folder / "out", {}
        file, svg = folder / "out.html", folder / "svg"
        results = [target]
        if name == "export":
            source = [str(dact_checkpoint)] if checkpoint else [str(dact_bundle), "--layout", "both"]
            arguments = ["export", source[0], str(target), *source[1:], "--force"]
        elif name == "single":
            results = [folder / "out.onnx"]
            results[0].write_bytes(b"another one")
            arguments = ["export", str(dact_bundle), str(results[0]), "--layout", "single", "--force"]
        elif name == "quantize":
            arguments = ["quantize", str(dact_bundle), str(target), "--force"]
        elif name == "tune":
            shutil.copytree(dact_bundle, target)
            texts = str(sentiment_data / "validation.tsv")
            arguments = ["tune", str(target), "--data", texts, "--budget", "flops=0.9", "--name", "cheap", "-t", "1"]
        elif name == "prepare":
            environment = {FOLDER_VARIABLE: str(folder / "cache")}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(FOLDER_VARIABLE, str(folder / "cache"))
                results = [prepare_bundle(open_bundle(dact_bundle)).folder]
            arguments = ["prepare", str(dact_bundle), "--force"]
        elif name == "report":
            results = [file, svg]
            write_report([two_results[0]], file, svg=svg)
            arguments = ["report", str(two_results[1]), "-o", str(file), "--svg", str(svg), "--force"]
        else:
            assert name == "train"
            shutil.copytree(plain_checkpoint, target)
            config = tmp_path / "train.yaml"
            settings = {
                "model": str(tiny_hf_folder),
                "data": str(sentiment_data),
                "max_length": 32,
                "batch_size": 16,
                "stage_epochs": [0.3, 0.3],
                "tuning_rows": 40,
                "precision": "fp32",
            }
            config.write_text(yaml.safe_dump({"method": {"name": "dact_bert", "trunk": 16}, "train": settings}))
            arguments = ["train", "-c", str(config), "-o", str(target), "--force"]
        if name in ("export", "quantize"):
            shutil.copytree(plain_bundle, target)
        old = tmp_path / f"old-{folder.name}-{name}"
        for result in results:
            (old / result.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if result.is_dir() else shutil.copy2
            copy(result, old / result.relative_to(folder))
        return Writer(arguments, results, folder, old, environment)

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 8 MB of its own, in memory; None where the tests may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def reseal() -> Reseal:
    """Makes a damaged bundle agree with its manifest again, as whoever means harm would.

    Sizes and hashes are those of the files that are there; `edit` changes the manifest, as plain data, before its
    digest is made, and need not leave one that edgebert could have written.
    """

    def seal(bundle: Path, edit: Edit = lambda tree: None) -> None:
        tree = json.loads((bundle / MANIFEST_NAME).read_bytes())
        for name, facts in tree["files"].items():
            if (bundle / name).is_file():
                data = (bundle / name).read_bytes()
                facts.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        edit(tree)
        tree["digest"] = ""
        tree["digest"] = hashlib.sha256(_text(tree)).hexdigest()
        (bundle / MANIFEST_NAME).write_bytes(_text(tree))

    return seal


def _text(tree: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(tree, order="sorted"), indent=1) + b"\n"


@pytest.fixture(scope="session")
def edit_graph(reseal: Reseal) -> EditGraph:
    """Changes a graph of a bundle with `onnx` and seals the bundle again."""

    def change(bundle: Path, name: str, edit: Callable[[onnx.ModelProto], object]) -> None:
        model = onnx.load_from_string((bundle / name).read_bytes())
        edit(model)
        (bundle / name).write_bytes(model.SerializeToString())
        reseal(bundle)

    return change


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """Makes a fresh copy of a bundle, to be damaged."""

    def copy(bundle: Path) -> Path:
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        return shutil.copytree(bundle, tmp_path / "bundle")

    return copy
