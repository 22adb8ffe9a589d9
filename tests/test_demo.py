from pathlib import Path

import msgspec
import pytest

from edgebert import demo
from edgebert.errors import EdgeBertError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_hf_folder: Path) -> None:
    """The same road with a tiny model and few rows."""
    train = msgspec.structs.replace(demo._TRAIN, model=str(tiny_hf_folder), stage_epochs=(0.1, 0.1), precision="fp32")
    monkeypatch.setattr(demo, "_TRAIN", train)
    monkeypatch.setattr(demo, "_PLAIN_EPOCHS", (0.1,))
    monkeypatch.setattr(demo, "_TIMED_TEXTS", 5)


@pytest.mark.usefixtures("quick")
def test_run_demo_ends_with_table_and_three_commands(tmp_path: Path) -> None:
    text = demo.run_demo(tmp_path / "run")

    table, _, commands = text.partition("Try next:")
    assert "plain, all layers" in table
    assert "dact_bert, default" in table
    assert [line.split()[:2] for line in commands.strip().splitlines()] == [
        ["edgebert", "run"],
        ["edgebert", "eval"],
        ["edgebert", "bench"],
    ]
    assert (tmp_path / "run" / "dact_bert.bundle" / "edgebert.json").is_file()


def test_run_demo_existing_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")

    with pytest.raises(EdgeBertError, match="--force"):
        demo.run_demo(tmp_path)

    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
