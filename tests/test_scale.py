import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.bundle import TOKENIZER_NAME, open_bundle
from edgebert.errors import ConfigError, DataError, MissingExtraError
from edgebert.host import host_facts
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.scale import SCHEMA, _stream, scale_bundle
from edgebert.scale._fit import UNITS, choose_form, fit
from edgebert.scale._grid import Point
from edgebert.scale._stream import checkpoints_of, measure_stream
from edgebert.scale_table import scale_table


@pytest.fixture(scope="module")
def scaled(dact_bundle: Path, sentiment_data: Path) -> dict[str, Any]:
    return scale_bundle(
        dact_bundle,
        data=sentiment_data / "test.tsv",
        texts=3000,
        batch_size=16,
        max_length=6,
        lengths=(4, 8, 16),
        batches=(1, 3),
        repeats=2,
    )


def _point(layers: float, length: int, batch: int, ms: float = 1.0) -> Point:
    macs = 1e6 * layers * length * batch * (1 + length / 500)
    return Point(
        policy="fixed",
        knobs={"layer": layers},
        layers=layers,
        length=length,
        batch=batch,
        macs=macs,
        mean_ms=ms,
        min_ms=ms,
        max_ms=ms,
    )


def test_scale_result_fields(scaled: dict[str, Any], dact_bundle: Path) -> None:
    assert set(scaled) == {
        *("schema", "host", "bundle", "method", "precision", "provider", "threads", "policy", "knobs", "window"),
        *("stream", "grid", "model"),
    }
    assert scaled["schema"] == SCHEMA == "edgebert.scale/1"
    assert set(scaled["host"]) == set(host_facts())
    assert (scaled["bundle"], scaled["method"], scaled["policy"]) == (str(dact_bundle), "dact_bert", "halting")
    assert json.loads(json.dumps(scaled)) == scaled


def test_scale_stream_checkpoints(scaled: dict[str, Any]) -> None:
    stream = scaled["stream"]

    assert (stream["texts"], stream["batch"], stream["max_length"]) == (3000, 16, 6)
    assert [row["texts"] for row in stream["checkpoints"]] == [1024, 2048, 3000]
    assert all(row["private_mb"] > 1 for row in stream["checkpoints"])
    assert all(row["texts_per_s"] > 0 for row in stream["checkpoints"])
    for row in stream["comparisons"]:
        assert row["ratio"] == pytest.approx(row["texts_per_s"] / row["list_texts_per_s"])
    assert stream["ratio"] == sorted(row["ratio"] for row in stream["comparisons"])[2]
    assert stream["warm_up_texts"] == 1024
    assert stream["warm_up_mb"] == stream["checkpoints"][0]["private_mb"]
    later = max(row["private_mb"] for row in stream["checkpoints"][1:])
    assert stream["growth_percent"] == pytest.approx(100 * max(0, later / stream["warm_up_mb"] - 1))
    assert stream["peak_mb"] == max(stream["warm_up_mb"], later)


def test_scale_grid_points(scaled: dict[str, Any]) -> None:
    got = [(point["knobs"]["layer"], point["length"], point["batch"]) for point in scaled["grid"]]

    assert got == [(layer, length, batch) for layer in (1, 2, 3) for length in (4, 8, 16) for batch in (1, 3)]
    for point in scaled["grid"]:
        assert point["layers"] == point["knobs"]["layer"]
        assert 0 < point["min_ms"] <= point["mean_ms"] <= point["max_ms"]
        assert point["row_ms"] == pytest.approx(point["mean_ms"] / point["batch"])
    macs = {key: point["macs"] for key, point in zip(got, scaled["grid"], strict=True)}
    assert macs[3, 8, 3] == pytest.approx(3 * macs[3, 8, 1])
    assert macs[1, 8, 1] < macs[2, 8, 1] < macs[3, 8, 1]
    assert macs[3, 16, 1] > 2 * macs[3, 8, 1]


def test_scale_model(scaled: dict[str, Any]) -> None:
    model = scaled["model"]

    assert (model["left_out"], model["points"]) == ("length", 18)
    assert [form["unit"] for form in model["forms"]] == list(UNITS)
    chosen = min(model["forms"], key=lambda form: form["median_relative_error"])
    assert all(model[key] == value for key, value in chosen.items())
    assert model["fixed_ms"] >= 0
    assert model["ms_per_gmac"] >= 0
    for form in model["forms"]:
        assert 0 <= form["median_relative_error"] <= form["p90_relative_error"] <= form["max_relative_error"]


def test_scale_table(scaled: dict[str, Any]) -> None:
    text = scale_table(scaled)

    assert "| texts | private MB | texts/s |" in text
    assert "- 3000 texts in batches of 16: " in text
    assert "- time of a call = " in text
    assert text.count("as the unit: median") == 3
    assert "| layer 3 " in text


def test_scale_width_grid_without_texts(width_bundle: Path) -> None:
    result = scale_bundle(width_bundle, lengths=(4, 8, 12), batches=(2,), repeats=1)

    assert result["stream"] is None
    assert sorted({point["knobs"]["width"] for point in result["grid"]}) == [0.25, 0.5, 0.75, 1.0]
    cheap, dear = (
        next(point["macs"] for point in result["grid"] if point["knobs"]["width"] == width and point["length"] == 12)
        for width in (0.25, 1.0)
    )
    assert cheap < dear
    assert "private MB" not in scale_table(result)


def test_scale_default_lengths_are_those_the_bundle_takes(plain_bundle: Path) -> None:
    result = scale_bundle(plain_bundle, batches=(1, 2, 3), repeats=1)

    assert sorted({point["length"] for point in result["grid"]}) == [16, 32]
    assert {point["policy"] for point in result["grid"]} == {"never"}
    assert result["model"]["left_out"] == "batch"
    assert "| all " in scale_table(result)


@pytest.mark.parametrize("unit", list(UNITS))
def test_fit_recovers_what_made_the_times(unit: str) -> None:
    points = [_point(layers, length, batch) for layers in (1, 3, 6) for length in (16, 64, 128) for batch in (1, 8)]
    points = [replace(p, mean_ms=0.25 * UNITS[unit](p) + 40 * p.macs / 1e9) for p in points]

    model = choose_form(points)

    form = next(form for form in model["forms"] if form["unit"] == unit)
    assert form["fixed_ms"] == pytest.approx(0.25)
    assert form["ms_per_gmac"] == pytest.approx(40)
    assert form["max_relative_error"] < 1e-9
    assert model["unit"] == unit


def test_fit_error_is_of_points_left_out() -> None:
    """One length that is off does not spoil the others' error, and cannot hide its own."""
    lengths = (16, 32, 64, 128)
    points = [_point(layers, length, 1) for layers in (1, 2, 3) for length in lengths]
    points = [replace(p, mean_ms=(1 + 10 * p.macs / 1e9) * (2 if p.length == 128 else 1)) for p in points]

    model = choose_form(points)

    assert model["max_relative_error"] > 0.4


def test_fit_numbers_are_not_negative() -> None:
    units, gmacs = np.ones(3), np.array([1.0, 2.0, 3.0])

    fixed_ms, ms_per_gmac = fit(units, gmacs, np.array([0.5, 2.0, 4.0]))
    assert fixed_ms == 0
    assert ms_per_gmac > 0
    fixed_ms, ms_per_gmac = fit(units, gmacs, np.array([3.0, 2.0, 1.0]))
    assert fixed_ms > 0
    assert ms_per_gmac == 0


@pytest.mark.parametrize(
    ("count", "ends"),
    [
        (5, [5]),
        (1024, [1024]),
        (3000, [1024, 2048, 3000]),
        (1_000_000, [48 * 1024 * n for n in range(1, 21)] + [1_000_000]),
    ],
)
def test_checkpoints_are_at_whole_windows(count: int, ends: list[int]) -> None:
    assert checkpoints_of(count) == ends


def test_stream_draws_texts_only_as_they_are_answered(
    plain_bundle: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is read when at most a window more has been taken than answered."""
    read = iter([5.0, 10.0, 30.0, 12.0])  # the first is whether it can be read at all
    monkeypatch.setattr(_stream, "private_mb", lambda: next(read))
    monkeypatch.setattr(_stream, "WINDOW", 4)
    monkeypatch.setattr(_stream, "CHECKPOINTS", 3)

    with EdgeModel.from_pretrained(plain_bundle, threads=1) as model:
        stream = measure_stream(model, texts[:3], 10, batch_size=2, max_length=None, reporter=Reporter())

    assert [row["texts"] for row in stream["checkpoints"]] == [4, 8, 10]
    assert (stream["warm_up_mb"], stream["peak_mb"], stream["growth_percent"]) == (10, 30, pytest.approx(200))


def test_stream_of_one_checkpoint_has_no_growth(plain_bundle: Path, texts: list[str]) -> None:
    with EdgeModel.from_pretrained(plain_bundle, threads=1) as model:
        stream = measure_stream(model, texts[:3], 5, batch_size=2, max_length=None, reporter=Reporter())

    assert [row["texts"] for row in stream["checkpoints"]] == [5]
    assert stream["growth_percent"] is None


def test_scale_streams_questions(reader_bundle: Path, questions_data: Path) -> None:
    result = scale_bundle(reader_bundle, data=questions_data, texts=4, lengths=(4, 8, 16), batches=(1,), repeats=1)

    assert result["stream"]["checkpoints"][0]["texts"] == 4
    assert "growth after that: not known" in scale_table(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": 0}, "texts: expected whole numbers of 1 or more"),
        ({"batches": ()}, "batches: expected whole numbers of 1 or more"),
        ({"repeats": 0}, "repeats: expected whole numbers of 1 or more"),
        ({"lengths": (4, 999)}, "lengths: expected 1 to 48 tokens, as the bundle takes them, got 4, 999."),
        ({"lengths": ()}, "got nothing"),
        ({"lengths": (4, 8), "batches": (1,), "repeats": 1}, "expected at least 3 different lengths"),
        ({"policy": "haltin"}, "has no point or policy 'haltin'"),
    ],
)
def test_scale_wrong_options(plain_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        scale_bundle(plain_bundle, **options)

    assert message in str(raised.value)


def test_scale_missing_data(plain_bundle: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        scale_bundle(plain_bundle, data="missing.tsv")


def test_scale_without_tokenizer(
    plain_bundle: Path, sentiment_data: Path, without_tokenizer: Callable[[Path], Path]
) -> None:
    bundle = without_tokenizer(plain_bundle)

    assert not open_bundle(bundle).has(TOKENIZER_NAME)
    with pytest.raises(ConfigError, match="has no tokenizer, so texts cannot be streamed"):
        scale_bundle(bundle, data=sentiment_data)


def test_scale_where_memory_cannot_be_told(
    plain_bundle: Path, sentiment_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(_stream, "private_mb", lambda: None)

    with pytest.raises(MissingExtraError, match=r"edgebert scale --data needs psutil, .*'edgebert\[eval\]'"):
        scale_bundle(plain_bundle, data=sentiment_data)


def test_scale_command(plain_bundle: Path) -> None:
    command = [sys.executable, "-m", "edgebert.cli", "scale", str(plain_bundle), "-l", "4,8,16", "-b", "1,2"]

    done = subprocess.run([*command, "--repeats", "1", "--json"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == SCHEMA
