import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebert.data import Example, read_examples, read_number
from edgebert.errors import ConfigError, DataError, MissingExtraError

PAIRS = [Example("It rains.", 'He said "wet".', "yes"), Example("", "Dry,\u2028today", "no")]
LINE_TEXT = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=40)


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pyarrow = importlib.import_module("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def datasets() -> ModuleType:
    module: ModuleType = importlib.import_module("datasets")
    return module


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when the hub's package is so much as imported."""
    monkeypatch.setattr("edgebert.tables.require", lambda *_, **__: pytest.fail("asked the hub"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'text\ttext_pair\tlabel\nIt rains.\tHe said "wet".\tyes\n\tDry,\u2028today\tno\n'),
        ("a.csv", 'text,text_pair,label\nIt rains.,"He said ""wet"".",yes\n"","Dry,\u2028today",no\n'),
        (
            "a.jsonl",
            "".join(json.dumps({"text": e.text, "text_pair": e.text_pair, "label": e.label}) + "\n" for e in PAIRS),
        ),
        ("A.TSV", 'idx\tlabel\ttext\ttext_pair\n0\tyes\tIt rains.\tHe said "wet".\n1\tno\t\tDry,\u2028today'),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_read_examples_pairs(tmp_path: Path, name: str, content: str, line_end: str, mark: str) -> None:
    path = _write(tmp_path / name, mark + content.replace("\n", line_end))

    assert read_examples(path) == PAIRS


def test_read_examples_parquet(tmp_path: Path) -> None:
    path = _write_parquet(tmp_path / "a.parquet", {"sentence": ["a", ""], "label": [1, 0]})

    assert read_examples(path, columns={"text": "sentence"}) == [
        Example("a", None, "1"),
        Example("", None, "0"),
    ]


def test_read_examples_text_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.txt", "one\n\nthree\tcells\n")

    examples = read_examples(path, columns={"text": "sentence"}, require_labels=False)

    assert examples == [Example("one"), Example(""), Example("three\tcells")]


def test_read_examples_csv_over_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\n')

    assert read_examples(path) == [Example("two\nlines", None, "1")]


@given(rows=st.lists(st.tuples(LINE_TEXT, LINE_TEXT, LINE_TEXT.filter(bool)), min_size=1, max_size=5))
def test_read_examples_tsv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.tsv"
    _write(path, "".join("\t".join(row) + "\n" for row in [("text", "text_pair", "label"), *rows]))

    assert read_examples(path) == [Example(*row) for row in rows]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("3", "3"),
        ("-1", "-1"),
        ("true", "true"),
        ("false", "false"),
        ('"1"', "1"),
        ("null", None),
        ('""', None),
    ],
)
def test_read_examples_label_kinds(tmp_path: Path, value: str, label: str | None) -> None:
    path = _write(tmp_path / "a.jsonl", f'{{"text": "a", "label": {value}}}')

    assert read_examples(path, require_labels=False) == [Example("a", None, label)]


def test_read_examples_without_label_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tsv", "text\nfirst\n\n")

    assert read_examples(path, columns={"label": "label"}, require_labels=False) == [
        Example("first"),
        Example(""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.tsv",
            "text\tlabel\na\t1\nb\n",
            ":3: expected 2 columns (text, label), got 1; write one cell for each column.",
        ),
        (
            "a.tsv",
            "text\tlabel\na\tb\t1\n",
            ":2: expected 2 columns (text, label), got 3; write one cell for each column.",
        ),
        (
            "a.csv",
            'text,label\n"a\nb",1\nc\n',
            ":4: expected 2 columns (text, label), got 1; write one cell for each column.",
        ),
        (
            "a.tsv",
            "texts\tlabel\na\t1\n",
            ":1: expected a column 'text', got texts, label; give --columns text=texts.",
        ),
        (
            "a.tsv",
            "text\tclass\na\t1\n",
            ":1: expected a column 'label', got text, class; give --columns label=NAME.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}\n',
            ":2: expected a column 'label', got text; give --columns label=NAME.",
        ),
        (
            "a.jsonl",
            "{}\n",
            ":1: expected a column 'text', got no column; give --columns text=NAME.",
        ),
        (
            "a.tsv",
            "text\ttext\tlabel\na\tb\t1\n",
            ":1: expected different column names, got text, text, label; rename the repeated one.",
        ),
        ("a.tsv", "", ":1: expected at least one row, got an empty file; write one example a row."),
        ("a.jsonl", "\ufeff", ":1: expected at least one row, got an empty file; write one example a row."),
        (
            "a.csv",
            "text,label\n",
            ":2: expected at least one row below the header, got the end of the file; add rows.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": \n',
            ":2: expected a JSON object, got '{\"text\": ' (Input data was truncated); write one a line.",
        ),
        ("a.jsonl", "[1, 2]\n", ":1: expected a JSON object, got list [1, 2]; write one a line."),
        (
            "a.jsonl",
            '{"text": 7, "label": 1}\n',
            ":1: expected 'text' to be text, got int 7; write it as text.",
        ),
        (
            "a.jsonl",
            '{"text": null, "label": 1}\n',
            ":1: expected 'text' to be text, got null; write it as text.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "text_pair": ["b"], "label": 1}\n',
            ":1: expected 'text_pair' to be text, got list ['b']; write it as text.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 0.5}\n',
            ":1: expected the label to be text, a whole number or a bool, got float 0.5; name the class.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "text_pair": "b", "label": 1}\n{"text": "c", "label": 1}\n',
            ":2: expected as many texts as in the first row, got only one; keep single texts and pairs apart.",
        ),
        (
            "a.jsonl",
            '{"text": "c", "label": 1}\n{"text": "a", "text_pair": "b", "label": 1}\n',
            ":2: expected as many texts as in the first row, got two texts; keep single texts and pairs apart.",
        ),
        (
            "a.tsv",
            "text\tlabel\na\t1\nb\t\n",
            ":3: expected a label, got none; label the row or leave it out.",
        ),
        (
            "a.tsv",
            b"text\tlabel\na\t1\nb\xff\t1\n",
            ":3: expected UTF-8, got the byte 0xff; save the file as UTF-8.",
        ),
        (
            "a.csv",
            b"\xef\xbb\xbftext,label\n\xe9,1\n",
            ":2: expected UTF-8, got the byte 0xe9; save the file as UTF-8.",
        ),
        (
            "a.csv",
            'text,label\na,1\n"b"c,1\n',
            ":3: expected quoted CSV, got ',' expected after '\"'; "
            "put cells with quotes in quotes and double the quotes inside.",
        ),
        (
            "a.csv",
            'text,label\n"b,1\nc,1\n',
            ":2: expected quoted CSV, got unexpected end of data; "
            "put cells with quotes in quotes and double the quotes inside.",
        ),
        (
            "a.txt",
            "a\n",
            ":1: expected labelled examples, got texts only (.txt); use a .tsv with a label column.",
        ),
        (
            "a.csv",
            "text;label\na;1\n",
            ":1: expected columns separated by commas, got `;`; save the file anew.",
        ),
        (
            "a.tsv",
            "text,label\na,1\n",
            ":1: expected columns separated by tabs, got `,`; save the file anew.",
        ),
        (
            "a.csv",
            "text,label\n\n",
            ":2: expected at least one row below the header, got the end of the file; add rows.",
        ),
        (
            "a.docx",
            "a\n",
            ": expected a file ending in .tsv, .csv, .jsonl, .parquet, .txt, got .docx; rename or convert it.",
        ),
        (
            "a",
            "a\n",
            ": expected a file ending in .tsv, .csv, .jsonl, .parquet, .txt, got no ending; rename or convert it.",
        ),
    ],
)
def test_read_examples_malformed(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = _write(tmp_path / name, content)

    with pytest.raises(DataError) as raised:
        read_examples(path)

    assert str(raised.value) == f"{path}{message}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a", None], "label": [1, 1]},
            ": row 2: expected 'text' to be text, got null; write it as text.",
        ),
        (
            {"text": ["a"], "labels": [1]},
            ": expected a column 'label', got text, labels; give --columns label=labels.",
        ),
        ({"text": [], "label": []}, ": expected at least one row, got none; write one example a row."),
    ],
)
def test_read_examples_malformed_parquet(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    path = _write_parquet(tmp_path / "a.parquet", columns)

    with pytest.raises(DataError) as raised:
        read_examples(path)

    assert str(raised.value) == f"{path}{message}"


def test_read_examples_not_parquet(tmp_path: Path) -> None:
    importlib.import_module("pyarrow")
    path = _write(tmp_path / "a.parquet", "text\tlabel\n")

    with pytest.raises(DataError, match=r"a\.parquet: expected a parquet file, got .*; write it anew"):
        read_examples(path)


@pytest.mark.parametrize("module", ["pyarrow", "datasets"])
def test_read_examples_without_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    source = {"pyarrow": str(_write(tmp_path / "a.parquet", "")), "datasets": "stanfordnlp/sst2"}[module]
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtraError, match=rf"{source} needs {module}.*edgebert\[hub\]"):
        read_examples(source, split="train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n \n'),
        ("a.csv", "text,label\na,1\n\nb,0\n\n"),
        ("a.csv", "text,label\r\na,1\r\n\r\nb,0\r\n\r\n"),
        ("a.tsv", "text\tlabel\na\t1\n\nb\t0\n\n"),
    ],
)
def test_read_examples_without_blank_lines(tmp_path: Path, name: str, content: str) -> None:
    path = _write(tmp_path / name, content)

    assert read_examples(path) == [Example("a", None, "1"), Example("b", None, "0")]


def test_read_examples_empty_text_of_a_single_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tsv", "text\na\n\n")

    assert read_examples(path, require_labels=False) == [Example("a"), Example("")]


@pytest.mark.parametrize(
    "source", ["missing", "missing.tsv", "data/missing.jsonl", "./missing", "/missing/folder", "a/b/c", "~/data"]
)
@pytest.mark.usefixtures("no_hub")
def test_read_examples_missing_path(source: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_examples(source, split="train")


@pytest.mark.usefixtures("no_hub")
def test_read_examples_missing_path_names_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=r"^daat: no such file or folder\. Did you mean 'data'\?$"):
        read_examples("daat", split="train")
    with pytest.raises(DataError, match=r"^data/train: no such file or folder\. Did you mean 'data/train\.tsv'\?$"):
        read_examples("data/train", split="train")


def test_read_examples_hub_out_of_reach(datasets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgebert.tables.is_reached", lambda *_: False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("was tried"))

    with pytest.raises(DataError) as raised:
        read_examples("daat/validation", split="validation")

    assert str(raised.value) == (
        "daat/validation: no such file or folder, and the hub cannot be reached. Did you mean 'data'?"
    )


@pytest.mark.usefixtures("no_hub")
def test_read_examples_missing_path_object() -> None:
    with pytest.raises(DataError, match="no such file"):
        read_examples(Path("stanfordnlp/sst2"), split="train")


def test_read_examples_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.tsv", "text\tlabel\na\t1\n")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(DataError, match=r"a\.tsv: cannot read the file \(Permission denied\)"):
        read_examples(path)


def test_read_examples_unknown_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'textpair'\. Did you mean 'text_pair'\?"):
        read_examples(tmp_path / "a.tsv", columns={"textpair": "b"})


def test_read_examples_missing_pair_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tsv", "text\tlabel\na\t1\n")

    with pytest.raises(DataError, match=r"a\.tsv:1: expected a column 'other', got text, label"):
        read_examples(path, columns={"text_pair": "other"}, require_labels=False)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.tsv", "train"),
        ("test.tsv", "test"),
        ("validation.tsv", "validation"),
        ("dev.tsv", "validation"),
        ("valid.tsv", "validation"),
        ("val.tsv", "validation"),
        ("validation.tsv", "dev"),
    ],
)
def test_read_examples_folder(tmp_path: Path, name: str, split: str) -> None:
    _write(tmp_path / name, "text\tlabel\na\t1\n")
    _write(tmp_path / "other.jsonl", "")

    assert read_examples(str(tmp_path), split=split) == [Example("a", None, "1")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train.tsv"],
            ": expected a file validation.tsv|.csv|.jsonl|.parquet, got train.tsv; add the file, or pass it itself.",
        ),
        (
            [],
            ": expected a file validation.tsv|.csv|.jsonl|.parquet, got nothing; add the file, or pass it itself.",
        ),
        (
            ["dev.tsv", "val.csv"],
            ": expected one file for validation, got dev.tsv and val.csv; keep one, or pass the file itself.",
        ),
    ],
)
def test_read_examples_folder_without_split(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        _write(tmp_path / name, "text\tlabel\na\t1\n")

    with pytest.raises(DataError) as raised:
        read_examples(tmp_path, split="validation")

    assert str(raised.value) == f"{tmp_path}{message}"


@pytest.mark.parametrize("source", [".", "stanfordnlp/sst2"])
def test_read_examples_split_not_given(source: str) -> None:
    with pytest.raises(ConfigError, match="say which split to read"):
        read_examples(source)


def _hub_dataset(datasets: Any) -> object:
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "idx": datasets.Value("int32"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    return datasets.Dataset.from_dict(
        {"sentence": ["good", "bad", "?"], "idx": [0, 1, 2], "label": [1, 0, -1]}, features
    )


@pytest.mark.parametrize(("source", "configuration"), [("stanfordnlp/sst2", None), ("nyu-mll/glue:mrpc", "mrpc")])
def test_read_examples_hub(
    datasets: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    configuration: str | None,
) -> None:
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> object:
        calls.append((name, config, split))
        return _hub_dataset(datasets)

    monkeypatch.setattr("edgebert.tables.is_reached", lambda *_: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)

    examples = read_examples(source, split="validation", columns={"text": "sentence"}, require_labels=False)

    assert calls == [(source.partition(":")[0], configuration, "validation")]
    assert examples == [Example("good", None, "positive"), Example("bad", None, "negative"), Example("?")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": "sentence"},
            "stanfordnlp/sst2 (test): row 3: expected a label, got none; label the row or leave it out.",
        ),
        (
            {"text": "sentense"},
            "stanfordnlp/sst2 (test): expected a column 'sentense', got sentence, idx, label; "
            "give --columns text=sentence.",
        ),
    ],
)
def test_read_examples_hub_malformed(
    datasets: ModuleType, monkeypatch: pytest.MonkeyPatch, columns: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("edgebert.tables.is_reached", lambda *_: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: _hub_dataset(datasets))

    with pytest.raises(DataError) as raised:
        read_examples("stanfordnlp/sst2", split="test", columns=columns)

    assert str(raised.value) == message


@pytest.mark.parametrize(
    "error",
    [ValueError("Unknown\nsplit"), FileNotFoundError("Unknown split"), ConnectionError("Unknown split")],
)
def test_read_examples_hub_refused(datasets: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr("edgebert.tables.is_reached", lambda *_: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    with pytest.raises(DataError) as raised:
        read_examples("stanfordnlp/sst2", split="trial")

    assert str(raised.value) == (
        "stanfordnlp/sst2: expected an existing path, or a hub data set with the split 'trial', "
        "got Unknown split; check the name, its :configuration, the split and the network."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\na\t4.25\nb\t-1\nc\t1e-3\nd\t .5 \n"),
        ("a.csv", 'text,label\na,4.25\nb,-1\nc,1e-3\nd," .5 "\n'),
        (
            "a.jsonl",
            '{"text": "a", "label": 4.25}\n{"text": "b", "label": -1}\n{"text": "c", "label": 0.001}\n'
            '{"text": "d", "label": "0.5"}\n',
        ),
    ],
)
def test_read_examples_numbers(tmp_path: Path, name: str, content: str) -> None:
    examples = read_examples(_write(tmp_path / name, content), label_kind="number")

    assert [read_number(example.label or "") for example in examples] == [4.25, -1.0, 0.001, 0.5]


def test_read_examples_numbers_of_parquet(tmp_path: Path) -> None:
    path = _write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "label": [0.1, 5.0]})

    examples = read_examples(path, label_kind="number")

    assert [read_number(example.label or "") for example in examples] == [0.1, 5.0]


@pytest.mark.parametrize(
    ("name", "content", "where", "got"),
    [
        ("a.tsv", "text\tlabel\na\t1\nb\t1,5\n", ":3", "str '1,5'"),
        ("a.tsv", "text\tlabel\na\tnan\n", ":2", "str 'nan'"),
        ("a.tsv", "text\tlabel\na\t1_0\n", ":2", "str '1_0'"),
        ("a.csv", 'text,label\n"a\nb",1\nb,good\n', ":4", "str 'good'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": true}\n', ":2", "bool True"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', ":1", "list [1]"),
    ],
)
def test_read_examples_no_number(tmp_path: Path, name: str, content: str, where: str, got: str) -> None:
    path = _write(tmp_path / name, content)

    with pytest.raises(DataError) as raised:
        read_examples(path, label_kind="number")

    assert str(raised.value) == (
        f"{path}{where}: expected the label to be a number, got {got}; correct it, or train a classification."
    )


def test_read_examples_missing_number(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\t\n")

    with pytest.raises(DataError, match=r"a\.tsv:3: expected a label, got none"):
        read_examples(path, label_kind="number")


def test_read_examples_numbers_nobody_needs(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "a", "label": 0.5}\n{"text": "b", "label": "x"}\n')

    assert [example.text for example in read_examples(path, require_labels=False)] == ["a", "b"]
