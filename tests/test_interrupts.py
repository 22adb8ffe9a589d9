import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgebert.interrupts import interruptible

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _is_heard() -> Iterator[None]:
    """A process that a shell starts in the background, and all that it starts, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupted_import() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error


def test_interruptible_error_after_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        _interrupted_import()

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interruptible_keeps_other_errors() -> None:
    with pytest.raises(ImportError, match="no such thing"), interruptible():
        raise ImportError("no such thing")


def test_interruptible_keeps_the_handler_of_others() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_command_interrupted_in_an_import(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, dact_bundle: Path) -> None:
    monkeypatch.setattr("edgebert.describe.describe_bundle", lambda *_: _interrupted_import())

    code, out, err = invoke("info", dact_bundle)

    assert (code, out, err) == (130, "", "error: interrupted\n")


def test_command_interrupted_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('initialization failed')\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])

    done = subprocess.run(
        [sys.executable, "-m", "edgebert", "info"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
