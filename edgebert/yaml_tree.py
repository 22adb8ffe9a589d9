"""YAML as plain data, strictly: no aliases, no repeated keys, nothing endless; and where each value stands.

PyYAML takes a number with an exponent and no point, such as 1e-5, for text; here it is a number, as in YAML 1.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from edgebert.errors import ConfigError

_DEEPEST = 50
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Tree(NamedTuple):
    """Plain data, and the line of each value in it by its path, such as `train.stage_epochs[0]`."""

    value: Any
    lines: dict[str, int]


def read_yaml(source: bytes | str, *, where: str) -> Tree:
    """Reads one YAML document.

    Args:
        source: The bytes of a file, UTF-8, or the text of a single value.
        where: What messages call it.

    Raises:
        ConfigError: It is no YAML, or has what no settings need: aliases, which can make a small file endless, a key
            twice, values nested too deeply, dates and objects, numbers or texts that could not be written again.
    """
    try:
        loader = _Loader(source.decode("utf-8-sig") if isinstance(source, bytes) else source)
        try:
            node = loader.get_single_node()
            lines = dict(_lines(node, "")) if node is not None else {}
            return Tree(None if node is None else loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{error.object[error.start]:02x}"
        raise ConfigError(f"{where}:{line}: expected UTF-8, got {got}; save the file as UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line_text = f":{mark.line + 1}" if mark is not None and isinstance(source, bytes) else ""
        expected = "" if isinstance(error, _Refusal) else "not YAML: "
        raise ConfigError(f"{where}{line_text}: {expected}{getattr(error, 'problem', None) or error}.") from error


def write_yaml(value: Any) -> str:
    """Returns plain data as a YAML document, in the order it has, that `read_yaml` reads as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Refusal(yaml.MarkedYAMLError):
    """What is YAML and is not taken."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes less."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refusal("an alias (*) is not taken, write the value out", event.start_mark)
        if self._depth == _DEEPEST:
            raise _Refusal(f"nested more than {_DEEPEST} deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Refusal(f"the key {key.value!r:.40} stands there twice", key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        if node.tag not in _TAGS:
            what = f"{node.value!r:.40}" if isinstance(node, yaml.ScalarNode) else "this"
            raise _Refusal(f"{what} is of the kind {kind!r:.40}; if it is text, put it in quotes", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError) as error:
            # A number of thousands of digits, or a tag in front of another kind of value.
            raise _Refusal(f"cannot be read as {kind}: {error}", node.start_mark) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _Refusal(f"expected a finite number, got {value}", node.start_mark)
        if isinstance(value, int) and value.bit_length() > 63:
            raise _Refusal("expected a number of less than 64 bits", node.start_mark)
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise _Refusal(f"expected text, got the lone surrogate in {value!r:.40}", node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which puts a text like 1e-5 in quotes."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _lines(node: Any, path: str) -> Iterator[tuple[str, int]]:
    """Yields path and line of a node and of all that is in it."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = f"{path}.{key.value}" if path else str(key.value)
                yield from _lines(value, name)
                yield name, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, f"{path}[{number}]")
