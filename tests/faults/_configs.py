"""Configurations with something wrong in them: seeded, each with a name."""

import random
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

VALUES: tuple[str, ...] = (
    "null",
    "true",
    "off",
    "0",
    "-1",
    "1.5",
    "-2.5e-3",
    ".nan",
    "-.inf",
    "1e-5",
    "1e999",
    "1" + "0" * 30,
    "9" * 5000,
    "0x7f",
    "0o17",
    "1_000",
    "1:30",
    "2001-02-03",
    "2001-99-99",
    "''",
    "nonsense",
    "'\\0'",
    '"\\0\\e[31m"',
    '"\\ud800"',
    "é日本",
    "[]",
    "[1, 2]",
    "[[[1]]]",
    "{}",
    "{a: 1}",
    "{1: 2}",
    "{a: 1, a: 2}",
    "? [a]\n: 3",
    "*x",
    "&x [*x]",
    "!!python/object/apply:os.system [echo]",
    "!!binary '*'",
    "!!int x",
    "!!set {a, b}",
    "!unknown 3",
    "[" * 3000,
    "{a: " * 200,
    "a: b: c",
    "'open",
    "\t3",
    "|\n  text",
    "%",
    "@",
    "---",
    "--- 3\n--- 4",
)
"""What is written in place of a value."""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Billion laughs: nine lines that are 400 million values."""

WHOLE: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b"  \n\n",
    "a comment": b"# nothing\n",
    "a list": b"- 1\n",
    "a text": b"method",
    "several documents": b"method: {name: plain}\n---\nmethod: {name: plain}\n",
    "NUL": b"method: {name: plain}\n\0",
    "latin-1": b"method: {name: caf\xe9}\n",
    "UTF-16": "method: {name: plain}\n".encode("utf-16"),
    "a byte order mark and nothing": b"\xef\xbb\xbf",
    "tabs": b"method:\n\tname: plain\n",
    "billion laughs": BOMB.encode(),
    "billion laughs in settings": f"method: {{name: plain}}\ntrain:\n{textwrap.indent(BOMB, '  ')}".encode(),
    "a value within itself": b"method: &x {name: plain, more: *x}\n",
    "a section twice": b"method: {name: plain}\nmethod: {name: plain}\n",
    "a merge of a merge": b"method: {name: plain, <<: {<<: {a: 1}}}\n",
    "nested 100,000 deep": b"[" * 100_000,
    "nested blocks": "".join(f"{' ' * depth}a:\n" for depth in range(300)).encode(),
    "200,000 characters in a line": b"method: {name: " + b"a" * 200_000 + b"}\n",
    "ten million of comments": b"#" * 10**7,
    "many brackets": b"method: {name: plain, a: [" + b"[]," * 20_000 + b"]}\n",
    "many keys": b"method:\n  name: plain\n" + b"".join(b"  k%d: 1\n" % key for key in range(5_000)),
    "too many keys": b"".join(b"k%d: 1\n" % key for key in range(50_000)),
}
"""Whole files, by name."""


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value of plain data, those that hold others included."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(text: str, path: tuple[Any, ...], value: str) -> str:
    """Returns a configuration with the value at a path written anew, as it is."""
    tree = yaml.safe_load(text)
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    if not path:
        return value
    node[path[-1]] = "PLACE_OF_THE_VALUE"
    return yaml.safe_dump(tree, sort_keys=False).replace("PLACE_OF_THE_VALUE", value)


def without(text: str, path: tuple[Any, ...]) -> str:
    """Returns a configuration without a key, and with its name slightly wrong."""
    tree = yaml.safe_load(text)
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    value = node[path[-1]]
    del node[path[-1]]
    if isinstance(node, dict):
        node[f"{path[-1]}x"] = value
    return yaml.safe_dump(tree, sort_keys=False)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Returns bytes of which some are gone, changed, or too many."""
    place, count = rng.randint(0, len(data)), rng.choice((1, 1, 2, 20))
    new = bytes(rng.choice((rng.randrange(256), *b"{}[]:,'\"#&*!|>%@-\t\n \\?")) for _ in range(rng.choice((0, count))))
    return data[:place] + new + data[place + rng.choice((0, count)) :]
