"""Files of data as people really have them, and worse: seeded, endless, each with a name and an ending."""

import json
import random
from collections.abc import Callable, Iterator

from tests.faults._texts import texts

_LABELS = ("negative", "positive", "0", "1", "", "nan", "1e999", "9" * 5000, "true", "1,5", "-1")
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "shift-jis", "utf-7")
_ENDS = ("\n", "\r\n", "\r", "\n\n", "\u2028", "\x0b", "")
_HEADERS = (["text", "label"], ["text", "text_pair", "label"], ["id", "text", "label"])
_WRONG_HEADERS = (["sentence", "label"], ["text", "text"], ["text"], [""], ["TEXT", "LABEL"], ["text", "label", ""])

Drawn = tuple[str, str, bytes]
"""A name, the ending of the file, and its bytes."""


def tables(rng: random.Random) -> Iterator[Drawn]:
    """Yields tables without end: most were right before something was done to them."""
    yield from _KNOWN
    makers = (_separated, _json_lines, _plain_lines)
    while True:
        name, ending, data = rng.choice(makers)(rng)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            change = rng.choice(_CHANGES)
            name, data = f"{name}, {change.__name__.strip('_')}", change(rng, data)
        yield name, ending, data


def question_files(rng: random.Random) -> Iterator[Drawn]:
    """Yields files of questions without end, in SQuAD's form and as lines."""
    yield from _KNOWN_QUESTIONS
    while True:
        squad = _squad(rng)
        name = "SQuAD"
        for _ in range(rng.choice((0, 1, 1, 2))):
            name = f"SQuAD with {_break_leaf(rng, squad)}"
        ending = rng.choice((".json", ".json", ".jsonl"))
        if ending == ".jsonl":
            lines = [_any_json(rng, {"question": "who ?", "context": "a man"}) for _ in range(rng.randint(1, 4))]
            name, data = "lines of questions", "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            data = json.dumps(squad).encode()
        if rng.random() < 0.3:
            change = rng.choice(_CHANGES)
            name, data = f"{name}, {change.__name__.strip('_')}", change(rng, data)
        yield name, ending, data


def _separated(rng: random.Random) -> Drawn:
    ending, separator = rng.choice(((".tsv", "\t"), (".csv", ",")))
    header = rng.choice(_HEADERS if rng.random() < 0.8 else _WRONG_HEADERS)
    drawn = texts(rng)
    rows = [[_cell(rng, column, drawn) for column in header] for _ in range(rng.randint(0, 6))]
    if rows and rng.random() < 0.3:
        _ragged(rng, rows)
    quote = (lambda cell: '"' + cell.replace('"', '""') + '"') if rng.random() < 0.5 else str
    lines = [separator.join(quote(cell) if ending == ".csv" else cell for cell in row) for row in [header, *rows]]
    text = rng.choice(_ENDS).join(lines) if rng.random() < 0.2 else "\n".join([*lines, ""])
    return f"{len(rows)} rows of {ending}", ending, _encoded(rng, text)


def _cell(rng: random.Random, column: str, drawn: Iterator[tuple[str, str]]) -> str:
    return rng.choice(_LABELS) if column == "label" else next(drawn)[1]


def _ragged(rng: random.Random, rows: list[list[str]]) -> None:
    row = rng.choice(rows)
    if row and rng.random() < 0.5:
        row.pop()
    else:
        row.append("more")


def _json_lines(rng: random.Random) -> Drawn:
    lines = [_any_json(rng, {"text": "a", "label": rng.choice(_LABELS)}) for _ in range(rng.randint(0, 5))]
    return f"{len(lines)} JSON lines", ".jsonl", _encoded(rng, "\n".join(lines))


def _any_json(rng: random.Random, base: dict[str, object]) -> str:
    """Returns an object as JSON in which something may be wrong."""
    made = dict(base)
    kind = rng.randrange(8)
    if kind < 3:
        made[rng.choice([*made, "extra", "text_pair", ""])] = rng.choice(_VALUES)
    elif kind == 3:
        made.pop(rng.choice(list(made)))
    elif kind == 4:
        return rng.choice(_NO_OBJECTS)
    elif kind == 5:
        depth = rng.choice((3, 900, 100_000))
        return '{"text": ' + "[" * depth + "]" * rng.choice((depth, 0)) + "}"
    return json.dumps(made, ensure_ascii=rng.random() < 0.5)


def _plain_lines(rng: random.Random) -> Drawn:
    drawn = texts(rng)
    lines = [next(drawn)[1] for _ in range(rng.randint(0, 6))]
    return "plain lines", ".txt", _encoded(rng, rng.choice(_ENDS).join(lines))


def _encoded(rng: random.Random, text: str) -> bytes:
    encoding = rng.choice(_ENCODINGS) if rng.random() < 0.3 else "utf-8"
    return text.encode(encoding, "surrogatepass" if encoding == "utf-8" and rng.random() < 0.5 else "replace")


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _byte_changed(rng: random.Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _bytes_inserted(rng: random.Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(_INSERTED) + data[place:]


def _line_repeated(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    lines.insert(rng.randint(0, len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def _lines_shuffled(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut,
    _byte_changed,
    _bytes_inserted,
    _line_repeated,
    _lines_shuffled,
)
_VALUES: tuple[object, ...] = (
    None,
    True,
    3,
    -1,
    2.5,
    float("inf"),
    10**400,
    "",
    "a\u2028b",
    "\x00\x1b[31m",
    [],
    ["a"],
    {},
    {"a": {"b": []}},
)
_NO_OBJECTS = ('["text"]', "3", "null", '"text"', "{", "}", "", "{}", '{"text": NaN}', '{"text": "\\ud800"}')
_INSERTED = (b"\0", b'"', b"\t", b",", b"\r", b"\n", b"\xff", b"\xef\xbb\xbf", b"\\", b'"""', b"\t\t\t")
_KNOWN: tuple[Drawn, ...] = (
    *(("an empty file", ending, b"") for ending in (".tsv", ".csv", ".jsonl", ".txt", ".parquet")),
    *(("a byte order mark alone", ending, b"\xef\xbb\xbf") for ending in (".tsv", ".csv", ".jsonl", ".txt")),
    *(("line ends alone", ending, b"\n\n\n") for ending in (".tsv", ".csv", ".jsonl", ".txt")),
    *(("NULs alone", ending, b"\0" * 100) for ending in (".tsv", ".csv", ".jsonl", ".txt", ".parquet")),
    ("a header alone", ".tsv", b"text\tlabel\n"),
    ("a quote that never ends", ".csv", b'text,label\n"good,1\nbad,0\n'),
    ("a cell beyond the limit of the csv module", ".csv", b"text,label\n" + b"a" * 200_000 + b",1\n"),
    ("a column without a name", ".tsv", b"text\tlabel\t\ngood\t1\t\n"),
    ("parquet's marks around nothing", ".parquet", b"PAR1\x00\x00\x00\x00PAR1"),
)


def _squad(rng: random.Random) -> dict[str, object]:
    context = "a good film with a weak plot"
    answers = [{"text": "good film", "answer_start": 2}]
    asked = [{"id": f"q{number}", "question": "which ?", "answers": answers} for number in range(rng.randint(1, 3))]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}


def _break_leaf(rng: random.Random, tree: object) -> str:
    """Puts something else in the place of one value, or takes it away; says what."""
    node: dict[str, object] | list[object] = tree  # type: ignore[assignment]
    path = ""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return f"nothing changed at {path}"
        key = rng.choice(keys)
        path += f".{key}"
        inner = node[key]  # type: ignore[index, call-overload]
        if isinstance(inner, dict | list) and rng.random() < 0.8:
            node = inner
            continue
        if rng.random() < 0.3:
            del node[key]  # type: ignore[arg-type]
            return f"no {path}"
        node[key] = rng.choice((*_VALUES, 10**20, 99, "film"))  # type: ignore[index, call-overload]
        return f"another {path}"


_KNOWN_QUESTIONS: tuple[Drawn, ...] = (
    ("an empty file", ".json", b""),
    ("an empty list", ".json", b"[]"),
    ("no articles", ".json", b'{"data": []}'),
    ("a byte order mark", ".json", b'\xef\xbb\xbf{"data": []}'),
    ("UTF-16", ".json", '{"data": []}'.encode("utf-16")),
    ("nested a hundred thousand deep", ".json", b'{"data": ' + b"[" * 100_000),
    ("nested in what is not read", ".json", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "data": []}'),
    ("a separator of Unicode in a line", ".jsonl", '{"question": "a\u2028b", "context": "c"}\n'.encode()),
    ("an empty line", ".jsonl", b'{"question": "a", "context": "c"}\n\n'),
)
