import os
from pathlib import Path

import pytest

from edgebert.bundle.files import list_files, read_regular, sha256
from edgebert.errors import BundleError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models--a" / "snapshots" / "rev"
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "a.onnx").write_bytes(b"abc")
    return folder


def test_read_regular_bytes(root: Path) -> None:
    assert read_regular(root, "graphs/a.onnx", limit=3) == b"abc"


def test_read_regular_where_the_system_has_other_flags(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = os.open
    monkeypatch.delattr(os, "O_NOFOLLOW")
    monkeypatch.delattr(os, "O_NONBLOCK")
    monkeypatch.setattr(os, "O_BINARY", 1 << 30, raising=False)
    monkeypatch.setattr(os, "open", lambda path, flags: asked.append(flags) or real(path, os.O_RDONLY))

    assert read_regular(root, "graphs/a.onnx", limit=3) == b"abc"
    assert asked == [os.O_RDONLY | 1 << 30]


def test_read_regular_too_large(root: Path) -> None:
    with pytest.raises(BundleError, match=r"graphs/a\.onnx: expected at most 2 bytes, got 3"):
        read_regular(root, "graphs/a.onnx", limit=2)


def test_read_regular_missing(root: Path) -> None:
    with pytest.raises(BundleError, match=r"graphs/b\.onnx: No such file or directory; the bundle is incomplete"):
        read_regular(root, "graphs/b.onnx", limit=9)


def test_read_regular_folder(root: Path) -> None:
    with pytest.raises(BundleError, match="graphs: "):
        read_regular(root, "graphs", limit=9)


def test_read_regular_pipe(root: Path) -> None:
    os.mkfifo(root / "pipe")

    with pytest.raises(BundleError, match="pipe: expected a regular file"):
        read_regular(root, "pipe", limit=9)


def test_read_regular_link_inside(root: Path) -> None:
    (root / "link").symlink_to(root / "graphs" / "a.onnx")

    with pytest.raises(BundleError, match="link: expected a file of the bundle itself, got a symbolic link"):
        read_regular(root, "link", limit=9)


def test_read_regular_linked_folder(root: Path) -> None:
    (root / "linked").symlink_to(root / "graphs")

    with pytest.raises(BundleError, match="linked: expected a file of the bundle itself"):
        read_regular(root, "linked/a.onnx", limit=9)


def test_read_regular_hub_cache_snapshot(root: Path) -> None:
    blobs = root.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "1f2e").write_bytes(b"blob")
    (root / "graphs" / "b.onnx").symlink_to(Path("../../../blobs/1f2e"))

    assert read_regular(root, "graphs/b.onnx", limit=9) == b"blob"


def test_read_regular_linked_beside_the_blobs(root: Path) -> None:
    (root.parent.parent / "refs").mkdir()
    (root.parent.parent / "refs" / "x").write_bytes(b"other")
    (root / "b").symlink_to(Path("../../refs/x"))

    with pytest.raises(BundleError, match="b: expected a file of the bundle itself"):
        read_regular(root, "b", limit=9)


def test_list_files_leaves_hidden_ones_out(root: Path) -> None:
    (root / ".cache").mkdir()
    (root / ".cache" / "x").touch()
    (root / ".gitattributes").touch()
    (root / "b").touch()

    assert list_files(root) == {"b", "graphs/a.onnx"}


def test_sha256_known_value() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
