import json
from pathlib import Path
from typing import Any

import pytest

from edgebert.errors import DataError
from edgebert.report._results import read_results

HOST = {"cpu": "a processor", "threads": 2, "os": "Linux", "python": "3.11"}
ROW: dict[str, Any] = {
    "bundle": "models/fast.bundle",
    "method": "fastbert",
    "policy": "default",
    "rule": "entropy",
    "knobs": {},
    "precision": "fp32",
    "threads": 1,
    "mean_layers": 2.0,
    "n": 40,
    "metric_name": "accuracy",
    "metric": 0.85,
    "ci_low": 0.8,
    "ci_high": 0.9,
    "layers": 3,
    "flops_ratio": 0.5,
    "gmacs": 0.5,
    "size_mb": 90.0,
    "exit_histogram": {"right": [1, 2], "wrong": [0, 1]},
    "mean_ms": 4.0,
    "texts_per_s": 250.0,
}
RESULT: dict[str, Any] = {"schema": "edgebert.eval/1", "host": HOST, "data": ["sets/test.tsv"], "rows": [ROW]}


def _write(folder: Path, result: object, name: str = "result.json") -> Path:
    path = folder / name
    path.write_text(result if isinstance(result, str) else json.dumps(result), encoding="utf-8")
    return path


def test_rows_are_named_shortly_and_after_their_data(tmp_path: Path) -> None:
    results = read_results([_write(tmp_path, RESULT)])

    (row,) = results.evaluated
    assert (row.name, row.label, row.data) == ("fast", "fast (default)", "test.tsv")


def test_bundles_of_one_name_keep_their_folders(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "bundle": "older/fast.bundle"}]

    results = read_results([_write(tmp_path, {**RESULT, "rows": rows})])

    assert [row.name for row in results.evaluated] == ["models/fast.bundle", "older/fast.bundle"]


def test_labels_say_what_differs(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "threads": 2}, {**ROW, "knobs": {"threshold": 0.5}}]

    results = read_results([_write(tmp_path, {**RESULT, "rows": rows})])

    assert [row.label for row in results.evaluated] == [
        "fast (default), 1 threads",
        "fast (default), 2 threads",
        "fast (default), 1 threads #2",
    ]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("{", r"not JSON \(.*\); write it with edgebert eval --json or bench --json"),
        ("[" * 100_000, "not JSON"),
        ([], "got no field `schema`"),
        ({"rows": []}, "got no field `schema`"),
        ({**RESULT, "schema": "edgebert.eval/9"}, r"schema 'edgebert.eval/9'. Did you mean 'edgebert.eval/1'\?"),
        ({**RESULT, "schema": ["x"]}, r"got the schema \['x'\]"),
        ({**RESULT, "rows": [{k: v for k, v in ROW.items() if k != "metric"}]}, "missing required field `metric`"),
        ({**RESULT, "rows": [{**ROW, "ci_low": "low"}]}, r"rows\[0?\.*\]\.ci_low: expected `float`, got `str`"),
        ({**RESULT, "host": None}, "host: expected `object`, got `null`"),
        (json.dumps({**RESULT, "rows": [{**ROW, "metric": float("nan")}]}), "metric: expected `float`, got `null`"),
        (json.dumps(RESULT).replace("0.85", "1e999"), "metric: expected `float`, got `null`"),
        ({**RESULT, "rows": [{**ROW, "gmacs": 0.0}]}, "gmacs: expected `float` > 0"),
        ({**RESULT, "rows": []}, "no rows to show"),
    ],
)
def test_mistake_is_one_clear_line(tmp_path: Path, result: object, message: str) -> None:
    path = _write(tmp_path, result)

    with pytest.raises(DataError, match=message) as raised:
        read_results([path])

    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_file_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot read the file \(No such file or directory\)"):
        read_results([tmp_path / "none.json"])


def test_no_files() -> None:
    with pytest.raises(DataError, match="at least one result file"):
        read_results([])
