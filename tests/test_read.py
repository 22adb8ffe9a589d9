import os
from pathlib import Path

import pytest

from edgebert.errors import ConfigError, DataError
from edgebert.read import is_folder, read_file, read_object


def test_read_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")

    assert read_file(tmp_path / "link", largest_bytes=3, error=DataError) == b"abc"


def test_read_file_refuses_what_is_larger(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcd")

    with pytest.raises(DataError, match=r"a: expected at most 3 bytes, got 4\.$"):
        read_file(tmp_path / "a", largest_bytes=3, error=DataError)


def test_read_file_refuses_what_grows_while_it_is_read() -> None:
    with pytest.raises(ConfigError, match=r"^/proc/self/status: expected at most 3 bytes, got more\.$"):
        read_file(Path("/proc/self/status"), largest_bytes=3, error=ConfigError)  # it says that it has none


def test_read_file_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DataError, match=r"pipe: expected a file, got a pipe or device"):
        read_file(tmp_path / "pipe", largest_bytes=3, error=DataError)


def test_is_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert is_folder(tmp_path, error=DataError) is True
    assert is_folder(Path(__file__), error=DataError) is False
    assert is_folder(tmp_path / "nothing", error=DataError) is None
    with pytest.raises(DataError, match=r"loop: cannot be looked at \(Too many levels of symbolic links\)"):
        is_folder(tmp_path / "loop", error=DataError)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b""])
def test_read_object_refuses(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"a\.json: (cannot be read as JSON|expected settings by name)"):
        read_object(tmp_path / "a.json", error=ConfigError)
