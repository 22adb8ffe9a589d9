import io
import sys

import pytest

from edgebert.output import ConsoleReporter, Reporter, markdown_table


def test_markdown_table_pads_and_escapes() -> None:
    assert markdown_table(("a", "long"), [("x|y", 1)]) == "| a    | long |\n|------|------|\n| x\\|y | 1    |"


def test_reporter_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say("hello")
    with reporter.track("work", 2) as advance:
        advance(1, "note")

    assert capsys.readouterr() == ("", "")


def test_console_reporter_writes_plain_lines_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.output._PLAIN_INTERVAL_S", 0.0)
    with ConsoleReporter().track("work", 2) as advance:
        advance(1, "")
        advance(1, "loss 0.1")

    assert capsys.readouterr() == ("", "work: 1/2\nwork: 2/2 loss 0.1\n")


def test_console_reporter_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ConsoleReporter().track("work", 2) as advance:
        advance(2, "done")

    assert "work" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
