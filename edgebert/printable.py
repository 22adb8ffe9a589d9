"""Text of others, such as what a user gave or a file holds, as a terminal and a log can take it."""

from __future__ import annotations

import re
import reprlib

_LONGEST_MESSAGE = 1500
_SPACES = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+ *")
# Line breaks, controls, surrogates, and what turns the direction of the text after it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns a text in which everything that steers a terminal is written as an escape; line breaks are spaces.

    Lone surrogates, which no encoding has, are escapes too. Letters of all scripts and joined emoji stay as they are.

    >>> printable("a\x1b[31mb" + chr(10) + "c")
    'a\\x1b[31mb c'
    """
    return _UNPRINTABLE.sub(_escape, _SPACES.sub(" ", text))


def message_line(text: str) -> str:
    """Returns a message as one line without anything that cannot be seen, nor its middle where it is far too long."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in printable(text))
    if len(line) <= _LONGEST_MESSAGE:
        return line
    return f"{line[: _LONGEST_MESSAGE - 300]} ... {line[-295:]}"


def shown(value: object) -> str:
    """Returns the kind of a value that is not what it should be, and the value itself where that is short.

    >>> shown("3"), shown(True), shown([1]), shown(object())
    ("str '3'", 'bool True', 'list [1]', 'object')
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    is_plain = isinstance(value, str | int | float | bytes | list | tuple | dict)
    return f"{kind} {_short.repr(value):.60}" if is_plain else kind


class _Short(reprlib.Repr):
    """Neither deep nor long, and without the digits that Python refuses to write."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 40

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if number.bit_length() <= 64 else f"of {number.bit_length()} bits"


_short = _Short()


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
