"""Checks of what a caller gives a public function: counts, numbers, names and lists of the right kind."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgebert.errors import ConfigError, DataError, EdgeBertError
from edgebert.printable import shown

_T = TypeVar("_T")
_NameOrPath = TypeVar("_NameOrPath", str, str | Path)


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """Returns a whole number, numpy's too, as an int.

    Raises:
        ConfigError: It is none (nor is a bool), or outside the range.
    """
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    # `bool_` is numpy's.
    if type(value).__name__ in ("bool", "bool_"):
        raise ConfigError(f"{name}: expected a whole number of {expected}, got {shown(value)}.")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is what is asked
    except TypeError as error:
        raise ConfigError(f"{name}: expected a whole number of {expected}, got {shown(value)}.") from error
    got = number if abs(number) < 2**64 else shown(number)
    if number < least:
        raise ConfigError(f"{name}: expected {least} or more, got {got}.")
    if most is not None and number > most:
        raise ConfigError(f"{name}: expected at most {most}, got {got}.")
    return number


def check_positive(name: str, value: object) -> float:
    """Returns a number of more than 0 as a float.

    Raises:
        ConfigError: It is no finite number (nor is a bool), or not more than 0.
    """
    is_number = isinstance(value, int | float) or hasattr(value, "__index__") or hasattr(value, "__float__")
    try:
        number = float(value) if is_number and not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{name}: expected a number of more than 0, got {shown(value)}.")
    return number


def check_name(name: str, value: object) -> str:
    """Returns a name.

    Raises:
        ConfigError: It is no text.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name}: expected a name, got {shown(value)}.")
    return value


def check_path(name: str, value: object, *, error: type[EdgeBertError] = DataError) -> Path:
    """Returns a path that was given as a text or a path.

    Raises:
        EdgeBertError: Of the kind asked for: it is neither.
    """
    if not isinstance(value, str | Path):
        raise error(f"{name}: expected a path, got {shown(value)}.")
    return Path(value)


def one_or_more(name: str, given: _NameOrPath | Sequence[_NameOrPath]) -> list[_NameOrPath]:
    """Returns a list of names or paths; a single one is a list of it, not of its letters.

    Raises:
        ConfigError: It is none, nor a list of them.
    """
    values = [given] if isinstance(given, str | Path) else list(given) if isinstance(given, Sequence) else given
    wrong = next((v for v in values if not isinstance(v, str | Path)), None) if isinstance(values, list) else given
    if wrong is not None or not isinstance(values, list):
        raise ConfigError(f"{name}: expected a name or a path, or a list of them, got {shown(wrong)}.")
    return values


def one_or_more_counts(name: str, given: int | Sequence[int]) -> list[int]:
    """Returns a list of whole numbers of 1 or more; a single one is a list of it.

    Raises:
        ConfigError: It is neither, or empty.
    """
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not values:
        raise ConfigError(f"{name}: expected at least one whole number, got none.")
    return [check_count(name, value) for value in values]


def items_of(name: str, values: Iterable[_T]) -> Iterator[_T]:
    """Returns an iterator over a list, or anything else that gives one value after the other in an order of its own.

    Raises:
        DataError: It is a single text, a set or a mapping, or no collection at all.
    """
    if isinstance(values, str):
        raise DataError(f"{name}: expected a list, got one str; write [text].")
    # A mapping would give its keys, a set any order, bytes their numbers.
    if not isinstance(values, Mapping | set | frozenset | bytes | bytearray | memoryview):
        try:
            return iter(values)
        except TypeError:
            pass
    raise DataError(f"{name}: expected a list, got {shown(values)}.")
