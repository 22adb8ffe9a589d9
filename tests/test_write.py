import stat
from pathlib import Path

import pytest

from edgebert.errors import ConfigError, EdgeBertError
from edgebert.write import check_file, write_file, write_files


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_file_new(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "é", force=False)

    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert _names(tmp_path) == ["a"]


def test_write_file_without_force_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    with pytest.raises(EdgeBertError, match="a: exists already; use --force to replace it"):
        write_file(tmp_path / "a", "new", force=False)

    assert (tmp_path / "a").read_text() == "old"
    assert _names(tmp_path) == ["a"]


def test_write_file_hands_on_permissions_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "link").symlink_to("a")

    write_file(tmp_path / "link", "new", force=True)

    assert (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert (tmp_path / "link").is_symlink()


def test_write_file_removes_what_a_dead_writer_left(tmp_path: Path) -> None:
    for name in (".a.partial-0123abcd", ".a.lock", ".b.partial-0123abcd"):
        (tmp_path / name).touch()

    write_file(tmp_path / "a", "new", force=False)

    assert _names(tmp_path) == [".b.partial-0123abcd", "a"]


def test_write_files_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()

    with pytest.raises(EdgeBertError, match="b: exists and is not a file"):
        write_files({tmp_path / "a": "new", tmp_path / "b": "new"}, force=True)

    assert (tmp_path / "a").read_text() == "old"
    assert _names(tmp_path) == ["a", "b"]


def test_write_files_the_same_one_twice(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")

    with pytest.raises(EdgeBertError, match="expected a file each, got the same one twice"):
        write_files({tmp_path / "a": "1", tmp_path / "link": "2"}, force=True)

    assert _names(tmp_path) == ["link"]


def test_check_file_is_what_it_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    with pytest.raises(ConfigError, match=r"a: is the input .*a, which writing there would destroy"):
        check_file(tmp_path / "a", force=True, sources=[tmp_path / "a"])


def test_write_file_inside_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "edgebert.json").touch()

    with pytest.raises(ConfigError, match=r"a\.onnx: is inside the bundle"):
        write_file(tmp_path / "a.onnx", "new", force=False)
    write_file(tmp_path / "model.sig", "signature", force=False)

    assert _names(tmp_path) == ["edgebert.json", "model.sig"]
