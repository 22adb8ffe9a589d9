import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebert.bundle import publish as publishing
from edgebert.bundle.publish import check_target, publish
from edgebert.errors import ConfigError, EdgeBertError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "edgebert.json").write_text("old")
    return folder


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def _beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_publish_new(tmp_path: Path) -> None:
    target = tmp_path / "out"

    with publish(target, force=False) as partial:
        (partial / "graphs").mkdir(mode=0o700)
        (partial / "graphs" / "a").write_text("a")
        (partial / "graphs" / "a").chmod(0o600)
        assert not target.exists()

    assert (target / "graphs" / "a").read_text() == "a"
    assert (target.stat().st_mode & 0o777, (target / "graphs").stat().st_mode & 0o777) == (0o755, 0o755)
    assert (target / "graphs" / "a").stat().st_mode & 0o777 == 0o644
    assert _beside(target) == []


def test_publish_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with publish(tmp_path / "out", force=False) as partial:
        (partial / "new").write_text("new")

    assert _content(tmp_path / "out") == {"new": "new"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_publish_replaces(monkeypatch: pytest.MonkeyPatch, target: Path, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(publishing, "exchange", lambda first, second: False)

    with publish(target, force=True) as partial:
        (partial / "new").write_text("new")
        assert _content(target) == {"edgebert.json": "old"}

    assert _content(target) == {"new": "new"}
    assert _beside(target) == []


@pytest.mark.parametrize("error", [ConfigError("x"), KeyboardInterrupt()])
def test_publish_error_leaves_the_old(target: Path, error: BaseException) -> None:
    def write_half() -> None:
        with publish(target, force=True) as partial:
            (partial / "new").write_text("new")
            raise error

    with pytest.raises(type(error)):
        write_half()

    assert _content(target) == {"edgebert.json": "old"}
    assert _beside(target) == []


def _write_new(target: Path) -> None:
    with publish(target, force=True) as partial:
        (partial / "new").write_text("new")


def test_publish_full_disk_leaves_the_old(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "synchronise", fail)

    with pytest.raises(EdgeBertError, match="out: No space left on device; what was there is untouched"):
        _write_new(target)

    assert _content(target) == {"edgebert.json": "old"}
    assert _beside(target) == []


def test_publish_process_killed_leaves_the_old(target: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from edgebert.bundle.publish import publish\n"
        "with publish(Path(sys.argv[1]), force=True) as partial:\n"
        "    (partial / 'new').write_text('new')\n"
        "    os._exit(9)"
    )

    result = subprocess.run([sys.executable, "-c", code, str(target)], check=False)

    assert result.returncode == 9
    assert _content(target) == {"edgebert.json": "old"}
    lock, partial = _beside(target)
    assert lock == ".out.lock"
    assert partial.startswith(".out.partial-")
    _write_new(target)
    assert _content(target) == {"new": "new"}
    assert _beside(target) == []


def test_publish_keeps_what_others_wrote(target: Path) -> None:
    names = [".out.partial-x", ".out2.partial-0123abcd", "out.partial-0123abcd", ".out.partial-0123abcd.txt"]
    for name in names:
        (target.parent / name).mkdir()

    _write_new(target)

    assert _beside(target) == sorted(names)


def test_publish_while_another_writer_is_at_work(target: Path) -> None:
    with publish(target, force=True) as partial:
        (partial / "new").write_text("new")
        with pytest.raises(EdgeBertError, match=r"out: another process is writing it \(it holds \.out\.lock\)"):
            _write_new(target)
        assert partial.is_dir()

    assert _content(target) == {"new": "new"}
    assert _beside(target) == []


def test_publish_puts_back_what_was_moved_aside(target: Path) -> None:
    target.rename(target.with_name(".out.partial-0123abcd-old"))

    with pytest.raises(EdgeBertError, match="out: exists already; use --force"), publish(target, force=False):
        pass

    assert _content(target) == {"edgebert.json": "old"}
    assert _beside(target) == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_publish_interrupted_between_two_renames_puts_the_old_back(
    monkeypatch: pytest.MonkeyPatch, target: Path, error: BaseException
) -> None:
    rename = Path.rename

    def fail_for_the_new(path: Path, to: Path) -> Path:
        if (path / "new").exists():
            raise error
        return rename(path, to)

    monkeypatch.setattr(publishing, "exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)

    with pytest.raises((EdgeBertError, KeyboardInterrupt)):
        _write_new(target)

    assert _content(target) == {"edgebert.json": "old"}
    assert _beside(target) == []


def test_publish_through_a_link(target: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to("out")

    _write_new(link)

    assert link.is_symlink()
    assert _content(target) == {"new": "new"}
    assert _beside(target) == ["current"]


def test_publish_hands_on_permissions(target: Path) -> None:
    target.chmod(0o700)

    _write_new(target)

    assert target.stat().st_mode & 0o777 == 0o700


def test_publish_keeps_to_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        _write_new(tmp_path / "out")
    finally:
        os.umask(before)

    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / "new").stat().st_mode & 0o777 == 0o600


def test_publish_does_not_replace_what_became_somebody_elses(target: Path) -> None:
    def replace_meanwhile() -> None:
        with publish(target, force=True) as partial:
            (partial / "new").write_text("new")
            (target / "edgebert.json").rename(target / "thesis.txt")

    with pytest.raises(EdgeBertError, match="holds nothing that edgebert made"):
        replace_meanwhile()

    assert _content(target) == {"thesis.txt": "old"}
    assert _beside(target) == []


def test_publish_cannot_confirm_the_names(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(publishing, "synchronise_names", fail)

    with pytest.raises(EdgeBertError, match="out: is replaced, but the disk may lose it: Input/output error"):
        _write_new(target)

    assert _content(target) == {"new": "new"}


def test_check_target_existing(target: Path) -> None:
    with pytest.raises(EdgeBertError, match="out: exists already; use --force to replace it"):
        check_target(target, force=False)
    check_target(target, force=True)


def test_check_target_never_replaces_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(EdgeBertError, match="holds nothing that edgebert made"):
        check_target(tmp_path, force=True)


def test_check_target_replaces_only_its_own_kind(target: Path) -> None:
    check_target(target, force=True, kind="bundle")

    with pytest.raises(EdgeBertError, match="out: is a bundle, so --force does not replace it by a checkpoint"):
        check_target(target, force=True, kind="checkpoint")


def test_publish_does_not_replace_another_kind(target: Path) -> None:
    def publish_checkpoint() -> None:
        with publish(target, force=True) as partial:
            (partial / "edgebert.yaml").write_text("new")

    with pytest.raises(EdgeBertError, match="out: is a bundle"):
        publish_checkpoint()

    assert _content(target) == {"edgebert.json": "old"}
    assert _beside(target) == []


def test_check_target_is_what_it_is_made_from(target: Path) -> None:
    (target.parent / "link").symlink_to("out")

    with pytest.raises(ConfigError, match=r"out: is the input .*link, which writing there would destroy"):
        check_target(target, force=True, sources=["no/such", target.parent / "link"])


def test_check_target_holds_what_it_is_made_from(target: Path) -> None:
    with pytest.raises(ConfigError, match=r"out: holds the input .*edgebert\.json"):
        check_target(target, force=True, sources=[target / "edgebert.json"])


@pytest.mark.parametrize("name", ["inner", "graphs/inner"])
def test_publish_inside_a_bundle(target: Path, name: str) -> None:
    (target / "graphs").mkdir()

    with pytest.raises(ConfigError, match=r"inner: is inside the bundle .*out, which takes no other files"):
        _write_new(target / name)

    assert sorted(path.name for path in target.rglob("*")) == ["edgebert.json", "graphs"]


def test_check_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()

    with pytest.raises(EdgeBertError, match="out: exists and is not a folder"):
        check_target(tmp_path / "out", force=True)


@pytest.mark.parametrize("parent", ["missing", "file"])
def test_publish_without_parent(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EdgeBertError, match="out: its parent folder does not exist"):
        _write_new(tmp_path / parent / "out")


def test_publish_read_only_parent(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(EdgeBertError, match="out: its parent folder is not writable"):
        _write_new(target)

    assert _content(target) == {"edgebert.json": "old"}


def test_publish_parent_refuses_new_folders(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)

    with pytest.raises(EdgeBertError, match="out: cannot write beside it: Read-only file system"):
        _write_new(target)

    assert _content(target) == {"edgebert.json": "old"}


@pytest.mark.parametrize("force", [False, True])
def test_publish_where_somebody_else_was_faster(tmp_path: Path, force: bool) -> None:
    target = tmp_path / "target"

    def publish_both() -> None:
        with publish(target, force=force) as partial:
            (partial / "edgebert.json").write_text("mine")
            target.mkdir()
            (target / "edgebert.json").write_text("theirs")

    if force:
        publish_both()
    else:
        with pytest.raises(EdgeBertError, match="target: exists already; use --force to replace it"):
            publish_both()

    assert (target / "edgebert.json").read_text() == ("mine" if force else "theirs")
    assert list(tmp_path.iterdir()) == [target]
