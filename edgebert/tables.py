"""The rows that each format of a table gives, and those of a data set on the hub.

TSV is split on tabs and knows no quotes: any text without tabs and line ends can stand in it. CSV is quoted.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from edgebert.errors import ConfigError, DataError, require
from edgebert.hub import is_reached, similar
from edgebert.printable import shown
from edgebert.read import LARGEST_DATA_BYTES, open_file, read_file

_JOINED = re.compile(r"\w+(?:([;,|\t])\w+)+")


class Row(msgspec.Struct, frozen=True):
    """A row as a format gives it: its cells by column, where it stands, and where its columns are named."""

    cells: Mapping[str, object]
    where: str
    named_at: str


def _tsv_rows(path: Path) -> Iterator[Row]:
    records = ((number, line.split("\t")) for number, line in numbered_lines(path))
    return _table_rows(path, records, separated_by="tabs")


def _csv_rows(path: Path) -> Iterator[Row]:
    return _table_rows(path, _csv_records(path), separated_by="commas")


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each record with the number of its first line; a quoted cell may span lines."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    number = 1
    try:
        for record in reader:
            yield number, record
            number = reader.line_num + 1
    except csv.Error as error:
        cure = "put cells with quotes in quotes and double the quotes inside"
        if "field limit" in str(error):
            cure = "write cells of so many characters into a .jsonl"
        raise malformed(f"{path}:{number}", "quoted CSV", str(error), cure) from error


def _table_rows(path: Path, records: Iterator[tuple[int, list[str]]], *, separated_by: str) -> Iterator[Row]:
    """Names the cells of each record after the first record; blank lines are none, but of a single column of texts."""
    _, header = next(records)
    names = ", ".join(header)
    if "\r" in names:
        raise malformed(f"{path}:1", "lines that end in LF", "lines that end in CR alone", "save the file anew")
    if len(header) == 1 and (joined := _JOINED.fullmatch(names)):
        separator = f"`{joined[1]}`" if joined[1] != "\t" else "tabs"
        raise malformed(f"{path}:1", f"columns separated by {separated_by}", separator, "save the file anew")
    if len(set(header)) < len(header):
        raise malformed(f"{path}:1", "different column names", names, "rename the repeated one")
    is_empty = True
    for number, record in records:
        if not record or (record == [""] and len(header) > 1):
            continue
        is_empty = False
        where = f"{path}:{number}"
        if len(record) != len(header):
            expected = f"{len(header)} columns ({names})"
            raise malformed(where, expected, str(len(record)), "write one cell for each column")
        yield Row(dict(zip(header, record, strict=True)), where, f"{path}:1")
    if is_empty:
        raise malformed(f"{path}:2", "at least one row below the header", "the end of the file", "add rows")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            cells = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise malformed(where, "a JSON object", f"{line[:40]!r:.40} ({error})", "write one a line") from error
        if not isinstance(cells, dict):
            raise malformed(where, "a JSON object", kind_of(cells), "write one a line")
        yield Row(cells, where, where)


def _text_rows(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        yield Row({"text": line}, f"{path}:{number}", f"{path}:{number}")


def _parquet_rows(path: Path) -> Iterator[Row]:
    arrow = require("pyarrow", extra="hub", purpose=f"reading {path}")
    parquet = require("pyarrow.parquet", extra="hub", purpose=f"reading {path}")
    number = 0
    with open_file(path, largest_bytes=LARGEST_DATA_BYTES, error=DataError) as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(cells, f"{path}: row {number}", str(path))
        # Values that Python has no form for, such as text that is not UTF-8, are plain errors.
        except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
            raise malformed(str(path), "a parquet file", _one_line(error), "write it anew") from error


def hub_rows(source: str, split: str | None) -> Iterator[Row]:
    """Yields the rows of a hub data set, with the names of its classes for their numbers."""
    if split is None:
        raise ConfigError(f"{source}: is a hub data set: say which split to read (train, validation or test).")
    datasets = require("datasets", extra="hub", purpose=f"reading the hub data set {source}")
    name, _, configuration = source.partition(":")
    is_cached = any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"{name.partition('/')[0]}___*"))
    if not is_cached and not is_reached(name, "dataset"):
        raise DataError(f"{source}: no such file or folder, and the hub cannot be reached.{similar(name)}")
    try:
        dataset = datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        expected = f"an existing path, or a hub data set with the split {split!r}"
        cure = "check the name, its :configuration, the split and the network"
        raise malformed(source, expected, _one_line(error), cure) from error
    features = dataset.features.items()
    classes = {column: kind.names for column, kind in features if isinstance(kind, datasets.ClassLabel)}
    for number, cells in enumerate(dataset, start=1):
        named = {column: _class_name(cells[column], names) for column, names in classes.items()}
        yield Row({**cells, **named}, f"{source} ({split}): row {number}", f"{source} ({split})")


def _class_name(index: int | None, names: Sequence[str]) -> str | None:
    # The hub marks rows whose class is withheld with -1.
    return None if index is None or index < 0 else names[index]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields each line with its number; Unicode's other line separators stay inside the texts."""
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def read_data(path: Path) -> bytes:
    """Returns the bytes of a file of data.

    Raises:
        DataError: It is no regular file, or cannot be read.
    """
    return read_file(path, largest_bytes=LARGEST_DATA_BYTES, error=DataError)


def _read_text(path: Path) -> str:
    """Returns the text of a file that is not empty, without a byte order mark."""
    try:
        text = read_data(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{error.object[error.start]:02x}"
        raise malformed(f"{path}:{number}", "UTF-8", got, "save the file as UTF-8") from error
    if not text:
        raise malformed(f"{path}:1", "at least one row", "an empty file", "write one example a row")
    return text


def malformed(where: str, expected: str, got: str, cure: str) -> DataError:
    """Returns the error of what is not as it should be."""
    return DataError(f"{where}: expected {expected}, got {got}; {cure}{'' if cure.endswith('?') else '.'}")


def kind_of(value: object) -> str:
    """Returns a cell as messages show it."""
    return "null" if value is None else shown(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": _tsv_rows,
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
"""By the ending of the file."""
