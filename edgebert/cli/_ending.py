"""How a command ends that is told to, and how it warns on the way."""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class ToldToEnd(BaseException):
    """A signal asked the process to end; no error, and nothing that catches errors may hold it back."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Turns the signals that ask a process to end into `ToldToEnd`, so that it cleans up; a second one ends it at once.

    Signals that somebody else handles or ignores, as `nohup` does, stay theirs.
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    ours = [getattr(signal, name) for name in names if is_main]
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]

    def set_all(handler: signal.Handlers | signal._HANDLER) -> None:
        for number in ours:
            signal.signal(number, handler)

    def end(number: int, frame: FrameType | None) -> NoReturn:
        set_all(signal.SIG_DFL)
        raise ToldToEnd(number)

    set_all(end)
    try:
        yield
    finally:
        set_all(signal.SIG_DFL)


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Shows warnings as everything else that a command has to say: on stderr, in one line."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
