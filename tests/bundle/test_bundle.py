import os
import random
import shutil
from pathlib import Path

import pytest

from edgebert.bundle import Bundle, open_bundle
from edgebert.errors import BundleError


@pytest.fixture
def copy(tmp_path: Path, plain_bundle: Path) -> Path:
    """A copy of a bundle, to be damaged."""
    return shutil.copytree(plain_bundle, tmp_path / "bundle")


def _names(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def test_open_bundle_files(plain_bundle: Path) -> None:
    bundle = open_bundle(plain_bundle)

    assert _names(plain_bundle) == [
        "README.md",
        "config.json",
        "config.yaml",
        "edgebert.json",
        "graphs/embed.onnx",
        "graphs/layer_00.onnx",
        "graphs/layer_01.onnx",
        "graphs/layer_02.onnx",
        "onnx/model.onnx",
        "samples.json",
        "tokenizer.json",
    ]
    assert sorted(bundle.manifest.files) == [name for name in _names(plain_bundle) if name != "edgebert.json"]
    assert bundle.check_files() == []
    assert bundle.size_bytes == sum(path.stat().st_size for path in (plain_bundle / "graphs").iterdir())


def test_read_gives_the_file(plain_bundle: Path) -> None:
    bundle = open_bundle(plain_bundle)

    assert bundle.read("config.yaml") == (plain_bundle / "config.yaml").read_bytes()
    assert bundle.has("config.yaml")


@pytest.mark.parametrize("name", ["nothing.txt", "../config.yaml", "edgebert.json"])
def test_read_file_not_listed(plain_bundle: Path, name: str) -> None:
    bundle = open_bundle(plain_bundle)

    with pytest.raises(BundleError, match="there is no "):
        bundle.read(name)
    assert not bundle.has(name)


@pytest.mark.parametrize("seed", range(60))
def test_flipped_byte_refused(copy: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = [name for name in _names(copy) if name != "README.md"]
    name = names[seed % len(names)]
    data = bytearray((copy / name).read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    (copy / name).write_bytes(data)

    with pytest.raises(BundleError, match=f"bundle/{name}: "):
        open_bundle(copy).check_files()


@pytest.mark.parametrize("edit", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_resized_file_refused(copy: Path, edit: object) -> None:
    path = copy / "graphs" / "layer_01.onnx"
    path.write_bytes(edit(path.read_bytes()))  # type: ignore[operator]

    with pytest.raises(BundleError, match=r"bundle/graphs/layer_01\.onnx: expected "):
        open_bundle(copy).check_files()


@pytest.mark.parametrize("name", ["graphs/embed.onnx", "tokenizer.json", "config.yaml", "onnx/model.onnx"])
def test_open_bundle_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()

    with pytest.raises(BundleError, match=f"bundle/{name}: missing; the bundle is incomplete"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["extra.txt", "graphs/layer_03.onnx", "new/a"])
def test_open_bundle_extra_file(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).touch()

    with pytest.raises(BundleError, match=f"bundle/{name}: not listed in the manifest; remove it"):
        open_bundle(copy)


def test_open_bundle_ignores_hidden_files(copy: Path) -> None:
    (copy / ".gitattributes").touch()

    assert open_bundle(copy).check_files() == []


@pytest.mark.parametrize("name", ["graphs/embed.onnx", "tokenizer.json", "edgebert.json"])
def test_linked_file_refused(copy: Path, name: str) -> None:
    elsewhere = (copy / name).rename(copy.parent / "elsewhere")
    (copy / name).symlink_to(elsewhere)

    with pytest.raises(BundleError, match=f"bundle/{name}: expected a file of the bundle itself, got a symbolic link"):
        open_bundle(copy).check_files()


def test_linked_folder_refused(copy: Path) -> None:
    elsewhere = (copy / "graphs").rename(copy.parent / "elsewhere")
    (copy / "graphs").symlink_to(elsewhere)

    with pytest.raises(BundleError, match=r"bundle/graphs/embed\.onnx: "):
        open_bundle(copy).check_files()


def test_hub_cache_snapshot_opens(tmp_path: Path, plain_bundle: Path) -> None:
    snapshot = shutil.copytree(plain_bundle, tmp_path / "models--a--b" / "snapshots" / "rev")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, name in enumerate(_names(snapshot)):
        blob = (snapshot / name).rename(blobs / f"{number:040x}")
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))

    assert open_bundle(snapshot).check_files() == []


@pytest.mark.parametrize("change", ["edited", "emptied", "removed", "linked"])
def test_changed_card_is_a_note(copy: Path, change: str) -> None:
    card = copy / "README.md"
    if change in ("removed", "linked"):
        card.unlink()
    if change == "linked":
        card.symlink_to(copy / "config.yaml")
    if change in ("edited", "emptied"):
        card.write_text("mine" if change == "edited" else "")

    notes = open_bundle(copy).check_files()

    assert notes == [f"{card}: edited or removed since the bundle was made."]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "x: no such bundle folder; make one with: edgebert export CHECKPOINT"),
        (lambda path: path.touch(), "x: no such bundle folder"),
        (lambda path: path.mkdir(), r"x: no edgebert\.json in it, so it is not a bundle"),
    ],
)
def test_open_bundle_none_there(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "x")  # type: ignore[operator]

    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "x")


def test_read_changed_after_opening(copy: Path) -> None:
    bundle: Bundle = open_bundle(copy)
    path = copy / "graphs" / "embed.onnx"
    path.write_bytes(path.read_bytes()[::-1])

    with pytest.raises(BundleError, match=r"graphs/embed\.onnx: changed since the bundle was made"):
        bundle.read("graphs/embed.onnx")
