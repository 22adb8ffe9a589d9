import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bundle.manifest import OperatingPoint
from edgebert.export import export_model

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def _run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answer_texts(dact_bundle: Path) -> None:
    out = _run("answer_texts.py", dact_bundle, "a good movie", "bad")

    assert len(re.findall(r"after [123] layers: ", out)) == 2


def test_answer_questions(reader_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "passage.txt").write_text("a good film about the camera", encoding="utf-8")

    out = _run("answer_questions.py", reader_bundle, tmp_path / "passage.txt", "which is good ?", "about what ?")

    assert len(re.findall(r"^\w.* \(0\.\d{3}, characters \d+ to \d+\): .* \?$", out, flags=re.MULTILINE)) == 2


def test_sweep_threshold(dact_bundle: Path, sentiment_data: Path) -> None:
    lines = _run("sweep_threshold.py", dact_bundle, sentiment_data / "test.tsv").splitlines()

    layers = [float(line.split()[-1]) for line in lines[1:]]
    assert len(layers) == 5
    assert layers == sorted(layers)
    assert layers[0] < layers[-1]


def test_keep_fewer_tokens(save_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    points = {
        "default": OperatingPoint(policy="lengths", knobs={"lengths": "0.75,0.5"}),
        "all": OperatingPoint(policy="never", knobs={}),
    }
    export_model(save_tiny_checkpoint({"name": "dynamic_tinybert"}, points), tmp_path / "bundle")

    lines = _run("keep_fewer_tokens.py", tmp_path / "bundle", "a good movie with a warm cast").splitlines()

    assert [line.partition(": ")[0] for line in lines] == ["all", "default", "half, then a quarter"]
    assert "tokens 7, 5, 5 of 9" in lines[1]
    assert "tokens 9, 9, 9 of 9, 1.00 of the cost" in lines[0]


def test_choose_width(save_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    points = {"default": OperatingPoint(policy="width", knobs={"width": 0.5})}
    export_model(save_tiny_checkpoint({"name": "tbert"}, points), tmp_path / "bundle")

    lines = _run("choose_width.py", tmp_path / "bundle", "a good movie with a warm cast").splitlines()

    costs = [float(re.findall(r"(\d\.\d\d) of the cost", line)[0]) for line in lines]
    assert [line.partition(":")[0] for line in lines] == [
        f"width {width}" for width in ("1.00", "0.75", "0.50", "0.25")
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6


def test_meet_a_budget(dact_bundle: Path, sentiment_data: Path, tmp_path: Path) -> None:
    validation, test = sentiment_data / "validation.tsv", sentiment_data / "test.tsv"

    lines = _run("meet_a_budget.py", dact_bundle, validation, test, tmp_path / "bundle").splitlines()

    assert [line.split()[0] for line in lines] == ["budget", "flops=0.8", "flops=0.6"]
    assert all(0 < float(line.split()[3]) < 0.9 for line in lines[1:])


def test_train_and_export(tiny_hf_folder: Path, sentiment_data: Path, tmp_path: Path) -> None:
    settings = [f"train.model={tiny_hf_folder}", "train.stage_epochs=[0.2, 0.2]", "train.tuning_rows=40"]

    out = _run("train_and_export.py", sentiment_data, tmp_path / "checkpoint", tmp_path / "bundle", *settings)

    assert "verified on 64 inputs" in out


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_tested(name: str) -> None:
    assert f"test_{name.removesuffix('.py')}" in globals()


def test_quantize_and_compare(dact_bundle: Path, sentiment_data: Path, tmp_path: Path) -> None:
    files = (sentiment_data / "test.tsv", sentiment_data / "train.tsv")

    lines = _run("quantize_and_compare.py", dact_bundle, *files, tmp_path).splitlines()

    assert [line.split()[0] for line in lines[1:]] == [dact_bundle.name, "dynamic", "static"]
    sizes = [float(line.split()[1]) for line in lines[1:]]
    assert max(sizes[1:]) < sizes[0]
    assert lines[1].split()[3:] == ["+0.00", "1.0000", "0.0000"]
    assert all(float(line.split()[4]) > 0.8 for line in lines[2:])
