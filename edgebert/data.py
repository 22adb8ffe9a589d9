"""Reads labelled texts from files, folders of files and hub data sets.

A table has the columns `text`, `label` and, for sentence pairs, `text_pair`; other columns are ignored.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from edgebert.arguments import check_path
from edgebert.errors import ConfigError, DataError, suggestion
from edgebert.hub import may_be_hub_id, similar
from edgebert.printable import shown
from edgebert.read import is_folder, reason_of
from edgebert.tables import READERS, Row, hub_rows, kind_of, malformed, read_data

_T = TypeVar("_T")

FIELDS = ("text", "text_pair", "label")
VALIDATION_NAMES = ("validation", "dev", "valid", "val")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HUB_ID = re.compile(r"(?P<name>[^/:]+/[^/:]+)(:[\w.-]+)?")


class Example(msgspec.Struct, frozen=True):
    """One input and, where it is known, its label.

    Attributes:
        text: The text, or the first of two. May be empty.
        text_pair: The second text of a sentence pair. None: a single text.
        label: The label's name, or a number as text. None: not labelled.
    """

    text: str
    text_pair: str | None = None
    label: str | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether it is known what the answer should be."""
        return self.label is not None


def texts_of(examples: Sequence[Example]) -> list[str | tuple[str, str]]:
    """Returns the text of each example, or its pair of texts."""
    return [e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples]


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """Returns at most so many of some items, evenly spaced through the list.

    >>> spread(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    >>> spread(["a", "b", "c"], 2)
    ['a', 'c']
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def name_of(source: str | Path, examples: Sequence[Any], *, split: str | None) -> str:
    """Returns what data is called where others must be able to tell it again.

    That is its name, the number of rows, and the beginning of the sha256 of the file; of a split of a folder or hub
    data set, of its rows as JSON.

    Args:
        source: A file, folder or hub id.
        examples: What was read of it.
        split: Which split of a folder or hub id.
    """
    path = Path(source)
    data = read_data(path) if path.is_file() else msgspec.json.encode(examples)
    part = "" if path.is_file() else f" ({split})"
    return f"{path.name}{part}, {len(examples)} rows, sha256 {hashlib.sha256(data).hexdigest()[:12]}"


def read_examples(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    require_labels: bool = True,
    label_kind: Literal["class", "number"] = "class",
) -> list[Example]:
    """Reads all examples of a source, in its order.

    Either all examples have a second text or none has. Whole numbers as labels become text; `true` and
    `false` become "true" and "false"; an empty label, null, or -1 as the hub's class is no label.

    Args:
        source: A .tsv, .csv, .jsonl, .parquet or .txt file (.txt: one text a line, no labels); a folder that
            holds one such table for each split; or a hub id such as `nyu-mll/glue:mrpc`, whose part after the
            colon is its configuration. The network is used only when no such path exists.
        split: `train`, `validation` or `test`: which file of the folder or split of the hub data set. The
            file of `validation` may be called dev, valid or val. Ignored for a file.
        columns: The source's column for a field, such as {"text": "sentence"}. A field that is not named has
            the column of its own name. Ignored for .txt.
        require_labels: Whether an example without a label is an error.
        label_kind: What a label must be: the name of a class, or a number.

    Raises:
        DataError: The source does not exist, cannot be read, or a row is malformed; names file and line.
        ConfigError: `columns` has an unknown field, or the source needs a split and none is given.
        MissingExtraError: A parquet file or a hub id, without the extra `hub`.
    """
    if not isinstance(columns or {}, Mapping):
        raise ConfigError(f"columns: expected a mapping such as {{'text': 'sentence'}}, got {shown(columns)}.")
    columns = dict(columns or {})
    for field in columns:
        if field not in FIELDS:
            raise ConfigError(f"columns: unknown field {field!r}.{suggestion(field, FIELDS)}")
    path = _find_file(source, split)
    if path is not None and path.suffix.lower() == ".txt":
        columns = {}
        if require_labels:
            raise malformed(f"{path}:1", "labelled examples", "texts only (.txt)", "use a .tsv with a label column")
    rows = hub_rows(str(source), split) if path is None else READERS[path.suffix.lower()](path)
    required = {"text", *(columns.keys() - {"label"}), *(["label"] if require_labels else [])}
    names = {field: columns.get(field, field) for field in FIELDS}
    examples: list[Example] = []
    for row in rows:
        example = _example(row, names, required, label_kind)
        if examples and (example.text_pair is None) != (examples[0].text_pair is None):
            got = "only one" if example.text_pair is None else "two texts"
            raise malformed(row.where, "as many texts as in the first row", got, "keep single texts and pairs apart")
        examples.append(example)
    if not examples:
        raise malformed(str(path or source), "at least one row", "none", "write one example a row")
    return examples


def _find_file(source: str | Path, split: str | None) -> Path | None:
    """Returns the file to read, or None when the source is a hub id."""
    path = check_path("data", source)
    is_there = is_folder(path, error=DataError)
    if is_there:
        return _find_split(path, split)
    suffix = path.suffix.lower()
    if is_there is None:
        if isinstance(source, str) and suffix not in READERS and _is_hub_id(source):
            return None
        hint = similar(path) or " Check the path; a hub data set is owner/name."
        raise DataError(f"{path}: no such file or folder.{hint}")
    if suffix not in READERS:
        endings = ", ".join(READERS)
        raise malformed(str(path), f"a file ending in {endings}", suffix or "no ending", "rename or convert it")
    return path


def _is_hub_id(source: str) -> bool:
    match = _HUB_ID.fullmatch(source)
    return match is not None and may_be_hub_id(match["name"])


def stems_of(split: str) -> tuple[str, ...]:
    """Returns what a split's file may be called, without its ending."""
    return VALIDATION_NAMES if split in VALIDATION_NAMES else (split,)


def _find_split(folder: Path, split: str | None) -> Path:
    """Returns the one file of the folder that holds the split."""
    if split is None:
        raise ConfigError(f"{folder}: is a folder: say which split to read (train, validation or test).")
    stems = stems_of(split)
    suffixes = [suffix for suffix in READERS if suffix != ".txt"]
    found = [path for stem in stems for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()]
    if not found:
        expected = f"a file {split}{'|'.join(suffixes)}"
        raise malformed(str(folder), expected, names_in(folder), "add the file, or pass it itself")
    if len(found) > 1:
        present = " and ".join(path.name for path in found)
        raise malformed(str(folder), f"one file for {split}", present, "keep one, or pass the file itself")
    return found[0]


def names_in(folder: Path) -> str:
    """Returns the first names in a folder, for messages.

    Raises:
        DataError: It cannot be looked into.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be looked into ({reason_of(error)}).") from error
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10]) or 'nothing'}{more}"


def read_number(text: str) -> float | None:
    """Returns the number that a text writes in decimal digits, such as 4, -0.5 or 1e3; None when it is none.

    >>> read_number(" 2.50 "), read_number("2,50"), read_number("nan")
    (2.5, None, None)
    """
    number = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    return number if math.isfinite(number) else None


def _example(row: Row, names: Mapping[str, str], required: set[str], label_kind: str) -> Example:
    """Checks one row and picks its fields; `required` are the fields that must have a column."""
    for field in FIELDS:
        if field in required and names[field] not in row.cells:
            near = difflib.get_close_matches(names[field], row.cells, n=1, cutoff=0.5)
            got = ", ".join(row.cells) or "no column"
            cure = f"give --columns {field}={near[0] if near else 'NAME'}"
            raise malformed(row.named_at, f"a column {names[field]!r}", got, cure)
    text, text_pair, label = (row.cells.get(names[field]) for field in FIELDS)
    if not isinstance(text, str):
        raise malformed(row.where, f"{names['text']!r} to be text", kind_of(text), "write it as text")
    if text_pair is not None and not isinstance(text_pair, str):
        raise malformed(row.where, f"{names['text_pair']!r} to be text", kind_of(text_pair), "write it as text")
    label_text = _LABEL_TEXTS[label_kind if "label" in required else "any"](label, row.where)
    if label_text is None and "label" in required:
        raise malformed(row.where, "a label", "none", "label the row or leave it out")
    return Example(text, text_pair, label_text)


def _class_text(label: object, where: str) -> str | None:
    if label is None or label == "":
        return None
    if isinstance(label, bool):
        return "true" if label else "false"
    if not isinstance(label, str | int):
        raise malformed(where, "the label to be text, a whole number or a bool", kind_of(label), "name the class")
    return str(label)


def _number_text(label: object, where: str) -> str | None:
    if label is None or label == "":
        return None
    if isinstance(label, bool) or not isinstance(label, str | int | float) or read_number(str(label)) is None:
        raise malformed(where, "the label to be a number", kind_of(label), "correct it, or train a classification")
    return str(label)


def _any_text(label: object, where: str) -> str | None:
    """Of a label that nobody needs: it may be of either kind."""
    return (_number_text if isinstance(label, float) else _class_text)(label, where)


_LABEL_TEXTS: dict[str, Callable[[object, str], str | None]] = {
    "class": _class_text,
    "number": _number_text,
    "any": _any_text,
}
