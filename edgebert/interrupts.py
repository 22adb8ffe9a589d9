"""What Ctrl-C is, whatever became of it on its way: an interruption."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt in the place of any error that follows Ctrl-C.

    An extension module whose import is interrupted says that it cannot be imported, and who tries it that a package is
    missing. A handler of somebody else's stays, and so does one outside the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    is_ours = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    was_pressed = False

    def remember(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal was_pressed
        was_pressed = True
        signal.default_int_handler(number, frame)

    if is_ours:
        signal.signal(signal.SIGINT, remember)
    try:
        yield
    except Exception as error:
        if was_pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
