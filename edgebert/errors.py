"""Every error edgebert raises on purpose, and the exit code the command line gives for each.

    EdgeBertError                 1  failed at run time
    |-- ConfigError               2  a setting, an option or a name is wrong
    |-- DataError                 2  an input file or text is wrong
    |-- BundleError               3  a bundle is refused
    |-- QualityError              4  a quality gate was missed
    `-- MissingExtraError         5  an optional package or provider is missing

A message says where, what was expected, what came and what to do, in one line.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

from edgebert.printable import message_line


class EdgeBertError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line exits with.

    A message may quote what a user gave or a file holds; it is made one printable line here, for all of them.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message_line(message))


class ConfigError(EdgeBertError, ValueError):
    """A configuration file, an option, a knob or a name does not mean anything."""

    exit_code = 2


class DataError(EdgeBertError, ValueError):
    """An input file, a row of it, or an input text cannot be used."""

    exit_code = 2


class BundleError(EdgeBertError, ValueError):
    """A bundle is damaged, incomplete, of another version, or not to be trusted."""

    exit_code = 3


class QualityError(EdgeBertError):
    """A quality gate (parity, a required metric, a budget) was missed."""

    exit_code = 4


class MissingExtraError(EdgeBertError, ImportError):
    """An optional package or execution provider is not installed."""

    exit_code = 5


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' for the nearest known name, or the list of names when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names) or 'none'}."


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports an optional module, or says which extra brings it.

    Args:
        module: Import name, such as `sklearn.metrics`.
        extra: The extra of edgebert that installs it.
        purpose: What it is needed for, as the start of the message.

    Raises:
        MissingExtraError: The module is not installed, or is and cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        reason = "is not installed" if is_missing else f"cannot be imported ({error})"
        raise MissingExtraError(
            f"{purpose} needs {package}, which {reason}: pip install 'edgebert[{extra}]'"
        ) from error
