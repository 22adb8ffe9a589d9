import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from edgebert.bench.cold import SCHEMA, bench_cold
from edgebert.bench_table import cold_table
from edgebert.bundle import TOKENIZER_NAME, WHOLE_MODEL_NAME, open_bundle
from edgebert.bundle.manifest import MANIFEST_NAME, encode_manifest
from edgebert.errors import BundleError, ConfigError, EdgeBertError
from edgebert.host import host_facts
from edgebert.rivals._cold.onnxruntime import start
from edgebert.rivals._process import SideProcess
from edgebert.rivals._protocol import Spec
from edgebert.runtime.prepared import prepare_bundle

ROW_FIELDS = {
    *(
        "bundle",
        "rival_of",
        "precision",
        "prepared",
        "threads",
        "cold_ms",
        "min_ms",
        "max_ms",
        "policy",
        "knobs",
        "provider",
        "private_mb",
        "repeats_ms",
    ),
}


@pytest.fixture(scope="module")
def result(plain_bundle: Path, dact_bundle: Path, plain_checkpoint: Path, sentiment_data: Path) -> dict[str, Any]:
    return bench_cold(
        [plain_bundle],
        data=sentiment_data / "test.tsv",
        against=["whole", "torch", dact_bundle],
        reference=str(plain_checkpoint),
        repeats=2,
    )


def test_cold_result_fields(result: dict[str, Any], plain_bundle: Path, dact_bundle: Path) -> None:
    assert set(result) == {"schema", "host", "rows", "ratios"}
    assert result["schema"] == SCHEMA == "edgebert.cold/1"
    assert set(result["host"]) == set(host_facts())
    names = [str(plain_bundle), "whole", "torch", str(dact_bundle)]
    assert [row["bundle"] for row in result["rows"]] == names
    assert [ratio["against"] for ratio in result["ratios"]] == names[1:]
    for row in result["rows"]:
        assert set(row) == ROW_FIELDS
        assert len(row["repeats_ms"]) == 2
        assert 0 < row["min_ms"] <= row["cold_ms"] <= row["max_ms"]
        assert (row["precision"], row["threads"]) == ("fp32", 1)


def test_cold_private_memory_is_the_whole_process(result: dict[str, Any]) -> None:
    private = {row["bundle"]: row["private_mb"] for row in result["rows"]}

    # torch alone takes more than all that the other side needs.
    assert private["torch"] > private["whole"] > 5


def test_cold_ratio(result: dict[str, Any]) -> None:
    ours, rival = result["rows"][:2]
    (ratio, *_) = result["ratios"]

    pairs = [a / b for a, b in zip(ours["repeats_ms"], rival["repeats_ms"], strict=True)]
    assert ratio["pairs"] == pytest.approx(pairs)
    assert (ratio["bundle"], ratio["threads"], ratio["winner"]) == (ours["bundle"], 1, None)


def test_cold_table(result: dict[str, Any]) -> None:
    lines = cold_table(result).splitlines()

    assert lines[0].split("|")[1].strip() == "bundle"
    assert "cold ms" in lines[0]
    assert len(lines) == 2 + 4 + 1 + 3
    assert "/ whole (1 thread): time ratio " in lines[7]


def test_cold_answers_questions(reader_bundle: Path, questions_data: Path) -> None:
    result = bench_cold([reader_bundle], data=questions_data, repeats=1)

    assert result["rows"][0]["cold_ms"] > 0
    with pytest.raises(ConfigError, match="the rivals answer texts, not questions"):
        bench_cold([reader_bundle], against="torch", repeats=1)


def test_cold_of_a_damaged_bundle(plain_bundle: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(plain_bundle, tmp_path / "damaged")
    graph = open_bundle(plain_bundle).manifest.program[0].graph
    assert graph is not None
    (damaged / graph).write_bytes(b"no graph")

    with pytest.raises(EdgeBertError, match=r"the process of .*damaged ended with code 3: error: "):
        bench_cold([damaged], repeats=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "uncompacted"}, "uncompacted starts as the bundle itself does"),
        ({"repeats": 0}, "repeats: expected 1 or more, got 0"),
        ({"threads": ()}, "threads: expected at least one whole number"),
        ({"against": "torhc"}, "Did you mean 'torch'?"),
        ({"reference": "x"}, "name one with --against"),
    ],
)
def test_cold_wrong_options(plain_bundle: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bench_cold([plain_bundle], **options)

    assert message in str(raised.value)


def test_cold_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bench_cold([tmp_path])


def _run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgebert.cli", "bench", *arguments], capture_output=True, text=True, check=False
    )


def test_cold_command(plain_bundle: Path) -> None:
    done = _run_cli(str(plain_bundle), "--cold", "--repeats", "1", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == SCHEMA


def test_cold_command_refuses_options_of_other_scenarios(plain_bundle: Path) -> None:
    done = _run_cli(str(plain_bundle), "--cold", "--batches", "2", "--per-layer")

    assert done.returncode == 2
    assert "leave --batches, --per-layer out" in done.stderr


# What a user has on disk of each rival, opened in a fresh process; the newest stack is without optimum.
@pytest.mark.long
@pytest.mark.parametrize(
    "rival",
    [
        "openvino",
        "openvino_int8",
        *(["optimum", "optimum_int8"] if importlib.util.find_spec("optimum") is not None else []),
    ],
)
def test_cold_rival(plain_bundle: Path, rival: str) -> None:
    result = bench_cold([plain_bundle], against=rival, repeats=1)

    assert result["rows"][1]["bundle"] == rival
    assert result["rows"][1]["cold_ms"] > 0


@pytest.mark.long
def test_cold_compiled(plain_bundle: Path, tmp_path: Path) -> None:
    spec = Spec(side="torch", bundle=str(plain_bundle))
    with SideProcess(spec, label="torch") as process:
        way, folder, threads, form = process.save(str(tmp_path)).arguments

    done = subprocess.run(
        [sys.executable, "-m", "edgebert.rivals._cold", way, folder, threads, "compiled"],
        input="a good film\n",
        capture_output=True,
        text=True,
        check=False,
    )

    assert form == "eager"
    assert done.stdout.strip() in ("0", "1"), done.stderr


def test_cold_says_what_is_prepared(plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBERT_CACHE", str(tmp_path))
    (before,) = bench_cold([plain_bundle], repeats=1)["rows"]
    prepare_bundle(open_bundle(plain_bundle))

    (after,) = bench_cold([plain_bundle], repeats=1)["rows"]

    assert (before["prepared"], after["prepared"]) == (False, True)


def test_cold_bundle_without_a_tokenizer_is_refused_before_it_starts(width_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(width_bundle)
    files = {name: facts for name, facts in opened.manifest.files.items() if name != TOKENIZER_NAME}
    shutil.copytree(width_bundle, tmp_path / "mute")
    (tmp_path / "mute" / TOKENIZER_NAME).unlink()
    manifest = msgspec.structs.replace(opened.manifest, files=files)
    (tmp_path / "mute" / MANIFEST_NAME).write_bytes(encode_manifest(manifest))

    with pytest.raises(ConfigError, match="has no tokenizer, so texts cannot be timed; --cold answers one"):
        bench_cold([tmp_path / "mute"], repeats=1)


def test_cold_rivals_read_no_padding(plain_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rival"
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(plain_bundle / TOKENIZER_NAME))
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "model.onnx").write_bytes((plain_bundle / WHOLE_MODEL_NAME).read_bytes())
    read: list[int] = []

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_inputs(self) -> list[Any]:
            return [types.SimpleNamespace(name="input_ids")]

        def run(self, _: None, inputs: dict[str, Any]) -> list[np.ndarray]:
            read.append(inputs["input_ids"].shape[1])
            return [np.zeros((1, 2))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        start(str(folder), "1", "48")("good movie")

    assert read == [len(tokenizer.encode("good movie").tokens) - tokenizer.encode("good movie").attention_mask.count(0)]
