"""Takes the weights out of an ONNX file's bytes, so that reading the rest copies none of them.

Protobuf runtimes copy what they read: of a file that is nearly all weights that would take as long as hashing it, and
as much memory again. Only what stands in the plainest of encodings is taken out, about which no two readers can differ:
the bytes of `graph.initializer.raw_data`, by their lengths. Of anything else the file is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Tags of the fields on the way: number * 8 + 2, as all of them are preceded by their length in bytes.
_GRAPH, _INITIALIZER, _RAW_DATA = 0x3A, 0x2A, 0x4A
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_SMALLEST_BYTES = 1024


class Parted(NamedTuple):
    """A file in two parts.

    Attributes:
        rest: The file without its large weights.
        weight_bytes: How many bytes of `raw_data` an initializer had, by its place among all of them; none for those
            without any. None: nothing was taken out.
    """

    rest: bytes
    weight_bytes: dict[int, int] | None


class _Field(NamedTuple):
    """Where a field stands: its tag, where it begins, where its content begins and ends."""

    tag: int
    start: int
    content: int
    end: int


class _UnusualError(Exception):
    """The bytes are no protobuf message, or one that is not plainly encoded."""


def set_weights_aside(data: bytes) -> Parted:
    """Returns an ONNX file without the bytes of its large weights, and how many those are.

    Args:
        data: The file, whether it is one or not: what cannot be taken apart is returned as it is.
    """
    weight_bytes: dict[int, int] = {}
    number = 0
    pieces: list[bytes] = []
    try:
        for field in _fields(data, 0, len(data)):
            if field.tag != _GRAPH:
                pieces.append(data[field.start : field.end])
                continue
            inner: list[bytes] = []
            for part in _fields(data, field.content, field.end):
                if part.tag != _INITIALIZER:
                    inner.append(data[part.start : part.end])
                    continue
                tensor, length = _without_weights(data, part)
                inner.append(_with_length(_INITIALIZER, tensor))
                if length is not None:
                    weight_bytes[number] = length
                number += 1
            pieces.append(_with_length(_GRAPH, b"".join(inner)))
    except _UnusualError:
        return Parted(data, None)
    return Parted(b"".join(pieces), weight_bytes)


def _without_weights(data: bytes, initializer: _Field) -> tuple[bytes, int | None]:
    """Returns an initializer's content without large `raw_data`, and the length of its last one, which counts."""
    kept: list[bytes] = []
    length = None
    for field in _fields(data, initializer.content, initializer.end):
        is_raw = field.tag == _RAW_DATA
        if is_raw:
            length = field.end - field.content
        if not is_raw or field.end - field.content < _SMALLEST_BYTES:
            kept.append(data[field.start : field.end])
    return b"".join(kept), length


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    """Gives the fields of a message that lies between two places.

    Raises:
        _UnusualError: It does not end there, or has groups, or tags or lengths longer than they need be.
    """
    while start < end:
        tag, content = _varint(data, start, end)
        kind = tag & 7
        if not tag >> 3:
            raise _UnusualError
        if kind == _LENGTH:
            length, content = _varint(data, content, end)
            stop = content + length
        elif kind == _VARINT:
            stop = content + 1
            while stop <= end and data[stop - 1] & 0x80:
                stop += 1
        elif kind in (_FIXED32, _FIXED64):
            stop = content + (4 if kind == _FIXED32 else 8)
        else:
            raise _UnusualError
        if stop > end:
            raise _UnusualError
        yield _Field(tag, start, content, stop)
        start = stop


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Returns a tag or length of at most five bytes, and where what follows begins."""
    value = 0
    for place in range(start, min(start + 5, end)):
        byte = data[place]
        value |= (byte & 0x7F) << 7 * (place - start)
        if not byte & 0x80:
            if (place > start and not byte) or value >> 32:
                raise _UnusualError  # longer than it need be, or than protobuf's own 32 bits
            return value, place + 1
    raise _UnusualError


def _with_length(tag: int, content: bytes) -> bytes:
    """Returns a field, encoded."""
    header = bytearray([tag])
    length = len(content)
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header) + content
