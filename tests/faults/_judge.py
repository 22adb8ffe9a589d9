"""What may come of bad input: an answer, or one line of an error raised on purpose; and that within a time."""

import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from edgebert.errors import EdgeBertError

GUARD_S = 120.0
"""What no single input may take. Nothing takes a hundredth of it, but the machine may be busy."""


class Hung(BaseException):
    """No result came in time. No error that a command would catch."""


@contextmanager
def guarded(seconds: float = GUARD_S) -> Iterator[None]:
    """Fails what takes too long: with an exception, or, where even that is not heard, by ending the process."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hung(f"nothing came within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer_or_refusal(name: str, call: Callable[[], Any]) -> tuple[Any, EdgeBertError | None]:
    """Returns what a call gave, or the error it raised on purpose, which must be one readable line.

    Raises:
        AssertionError: It raised anything else.
    """
    try:
        return call(), None
    except EdgeBertError as error:
        check_message(name, str(error))
        return None, error
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {str(error)[:300]!a}") from error


def check_message(name: str, message: str) -> None:
    """Checks that a message is a line that any terminal and any log can take."""
    assert message.strip(), f"{name}: no message"
    assert len(message) < 2000, f"{name}: a message of {len(message)} characters: {message[:300]!a}"
    odd = [character for character in message if not character.isprintable()]
    assert not odd, f"{name}: {odd[:5]!a} in {message[:300]!a}"
