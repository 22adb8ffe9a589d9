"""No file of data makes a reader fail in another way than by one line that names the file, and the line of it."""

import importlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.data import Example, read_examples
from edgebert.errors import DataError, EdgeBertError
from edgebert.questions import read_questions
from edgebert.tasks import load_task
from tests.faults._judge import answer_or_refusal, guarded
from tests.faults._tables import question_files, tables

Rounds = Callable[[int, int], int]
Record = Callable[[str, object], None]
Invoke = Callable[..., tuple[int, str, str]]


def test_any_table_is_read_or_refused(tmp_path: Path, rounds: Rounds, record_property: Record) -> None:
    rng, seen, count = random.Random(11), Counter[str](), rounds(600, 14_000)
    for name, ending, data in islice(tables(random.Random(10)), count):
        path = tmp_path / f"data{ending}"
        path.write_bytes(data)
        task, needs_labels = load_task(rng.choice(("classification", "regression"))), rng.random() < 0.6

        def read(task: Any = task, path: Path = path, needs_labels: bool = needs_labels) -> Any:
            examples = task.read(path, require_labels=needs_labels)
            if needs_labels:
                task.encode_targets(examples, task.label_names(examples), where=str(path))
            return examples

        with guarded():
            examples, error = answer_or_refusal(name, read)
        assert error is None or str(error).startswith((f"{path}:", "labels: ")), (name, error)
        assert examples is None or all(isinstance(example, Example) for example in examples)
        seen["refused" if examples is None else "read"] += 1
    assert seen["read"] > count / 20
    record_property("tables", f"{seen['read']} of {count} read, {seen['refused']} refused with the file and the cause")


def test_any_file_of_questions_is_read_or_refused(tmp_path: Path, rounds: Rounds, record_property: Record) -> None:
    rng, seen, count = random.Random(13), Counter[str](), rounds(300, 5000)
    for name, ending, data in islice(question_files(random.Random(12)), count):
        path = tmp_path / f"data{ending}"
        path.write_bytes(data)
        with guarded():
            questions, error = answer_or_refusal(
                name, lambda path=path: read_questions(path, require_answers=rng.random() < 0.5)
            )
        assert error is None or str(error).startswith(f"{path}:"), (name, error)
        for question in questions or ():
            assert all(question.text_pair[gold.start :].startswith(gold.text) for gold in question.answers), name
        seen["refused" if questions is None else "read"] += 1
    assert seen["read"] > count / 20
    record_property("questions", f"{seen['read']} of {count} files read, {seen['refused']} refused")


def test_any_damaged_parquet_file_is_read_or_refused(tmp_path: Path, rounds: Rounds, record_property: Record) -> None:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    path, rng, count, refused = tmp_path / "data.parquet", np.random.default_rng(14), rounds(60, 1500), 0
    columns = {"text": ["good", "bad", "déjà"] * 20, "label": [1, 0, 1] * 20, "other": [[1.5], [], [2.5]] * 20}
    parquet.write_table(arrow.table(columns), path, row_group_size=16)
    data = path.read_bytes()
    for number in range(count):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(0, 8)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(data))] if number % 3 == 0 else changed)
        with guarded():
            _, error = answer_or_refusal(f"parquet {number}", lambda: read_examples(path, require_labels=False))
        refused += error is not None
    assert refused < count
    record_property("parquet", f"{refused} of {count} damaged files refused, the others read")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def _folder(path: Path) -> None:
    path.mkdir()


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": _fifo,
    "a device without an end": _device,
    "a link to itself": _loop,
    "a link to nothing": _dangling,
    "a folder": _folder,
    "a terabyte of nothing": _hole,
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl", ".txt", ".parquet", ".json"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"data{ending}"
    NO_FILES[kind](path)
    read = read_questions if ending == ".json" else read_examples

    with guarded(), pytest.raises(DataError, match=r"data\.\w+: "):
        read(path, split="validation", **{} if ending == ".json" else {"require_labels": False})


NO_SOURCES = (None, 3, b"x.tsv", ["x.tsv"], "", "\0.tsv", "x" * 5000 + ".tsv", "\udcff.tsv", "a/b/c")


@pytest.mark.parametrize("source", NO_SOURCES)
@pytest.mark.parametrize("read", [read_examples, read_questions])
def test_a_source_that_is_none_is_refused(read: Callable[..., Any], source: Any, tmp_path: Path) -> None:
    with guarded():
        _, error = answer_or_refusal(repr(source)[:20], lambda: read(source, split="train"))

    assert isinstance(error, EdgeBertError)


@pytest.mark.parametrize(
    ("ending", "header", "good", "bad", "message"),
    [
        (".tsv", "text\tlabel\n", "good\t1\n", "bad\n", "expected 2 columns"),
        (".csv", "text,label\n", "good,1\n", 'bad,"1\n', "expected quoted CSV"),
        (".jsonl", "", '{"text": "good", "label": 1}\n', '{"text": 3}\n', "expected a column 'label'"),
    ],
)
def test_one_bad_row_after_many_is_named(
    tmp_path: Path, ending: str, header: str, good: str, bad: str, message: str, rounds: Rounds, record_property: Record
) -> None:
    rows = rounds(5000, 100_000)
    path = tmp_path / f"data{ending}"
    path.write_text(header + good * rows + bad, encoding="utf-8")
    line = rows + (2 if header else 1)

    start = time.perf_counter()
    with guarded(), pytest.raises(DataError) as raised:
        read_examples(path)

    assert str(raised.value).startswith(f"{path}:{line}: {message}")
    record_property("seconds", f"{time.perf_counter() - start:.2f} until row {rows + 1} of {ending} was named")


COMMANDS: dict[str, tuple[str, ...]] = {
    "eval": ("eval", "BUNDLE", "--data", "DATA"),
    "eval with columns": ("eval", "BUNDLE", "--data", "DATA", "--columns", "text=a,label=b"),
    "tune": ("tune", "BUNDLE", "--data", "DATA", "-o", "OUT"),
    "quantize": ("quantize", "BUNDLE", "OUT", "--mode", "static", "--calibration", "DATA"),
    "scale": ("scale", "BUNDLE", "--data", "DATA", "--texts", "1", "-l", "4", "-b", "1", "--repeats", "1"),
    "bench": ("bench", "BUNDLE", "--data", "DATA", "--repeats", "1", "--max-texts", "1"),
    "run": ("run", "BUNDLE", "-i", "DATA"),
    "train": ("train", "-c", "CONFIG", "-o", "OUT", "--data", "DATA", "--max-steps", "1"),
}
BAD_FILES: dict[str, tuple[str, bytes]] = {
    "ragged": (".tsv", b"text\tlabel\ngood\t1\tmore\n"),
    "without its column": (".tsv", b"sentence\tclass\ngood\tpositive\n"),
    "latin-1": (".csv", b"text,label\ncaf\xe9,positive\n"),
    "UTF-16": (".csv", "text,label\ngood,positive\n".encode("utf-16")),
    "no objects": (".jsonl", b"[1]\n"),
    "no parquet": (".parquet", b"PAR1 nothing of it PAR1"),
    "empty": (".tsv", b""),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_the_file_and_what_is_wrong_with_it(
    invoke: Invoke, tmp_path: Path, dact_bundle: Path, tiny_hf_folder: Path, command: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"method: {{name: plain}}\ntrain: {{model: '{tiny_hf_folder}', max_length: 16}}\n")
    for number, (ending, content) in enumerate(BAD_FILES.values()):
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        path = folder / f"train{ending}"
        path.write_bytes(content)
        data = folder if command == "train" else path
        places = {"BUNDLE": dact_bundle, "DATA": data, "OUT": tmp_path / "out", "CONFIG": config}

        with guarded():
            code, out, err = invoke(*[places.get(part, part) for part in COMMANDS[command]])

        assert (code, out) == (2, ""), (path, err)
        assert err.splitlines()[-1].startswith(f"error: {path}:"), err
        assert not (tmp_path / "out").exists()
