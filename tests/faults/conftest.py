"""How often a fault is tried: a few seeded times in `make test`, as often as it takes in `make faults`."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from edgebert.bundle.manifest import MANIFEST_NAME

Rounds = Callable[[int, int], int]
Edit = Callable[[dict[str, Any]], object]
Reseal = Callable[..., None]
EditGraph = Callable[..., None]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Returns the first of two counts in `make test`, the second with `--full`."""
    is_full = bool(request.config.getoption("full"))
    return lambda short, full: full if is_full else short


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
