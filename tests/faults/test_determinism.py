"""The same bundle, seed and one thread give the same bytes: answers, bundles, files and weights, in any process."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from edgebert import registry
from edgebert.bundle.manifest import OperatingPoint
from edgebert.config import ExportConfig, RunConfig, TrainConfig, read_config
from edgebert.export import export_model
from edgebert.training import loop, train_model

BUNDLES = ["plain_bundle", "dact_bundle", "geep_bundle", "token_bundle", "width_bundle"]
SEEDS = ("1", "2")

ANSWER = """
import hashlib, sys
import numpy as np
from edgebert import EdgeModel
from edgebert.runtime.prepared import prepare_bundle

def digest(model):
    rng = np.random.default_rng(0)
    made = hashlib.sha256()
    for policy in (*model.manifest.operating_points, *model.manifest.policies):
        model.set_policy(policy)
        for rows, tokens in ((1, 1), (7, 20), (33, 48)):
            lengths = rng.integers(1, tokens + 1, rows)
            mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
            got = model.forward(rng.integers(1, 100, (rows, tokens)), mask)
            for array in (got.logits, got.exit_layer, got.path, got.cost_ratio):
                made.update(np.ascontiguousarray(array).tobytes())
        made.update(repr(model(["a good film", "boring", "the plot of a script"] * 5, batch_size=4)).encode())
    return made.hexdigest()

def digests(path, **options):
    with EdgeModel.from_pretrained(path, threads=1, **options) as model:
        budget = 5 * max(model.bundle.manifest.files[name].bytes for name in model.graphs) / 1e6
        return [digest(model), digest(model)], budget
"""
ANSWER_EVERY_WAY = """
for path in sys.argv[1:]:
    made, budget = digests(path, prepare=False)
    for options in ({"prepare": False}, {"prepare": False, "memory_budget_mb": budget}, {"prepare": True}, {}):
        made += digests(path, **options)[0]
    made += digests(path, memory_budget_mb=budget)[0]
    print(*sorted(set(made)))
"""

EXPORT = """
import sys, torch
from edgebert.config import ExportConfig
from edgebert.export import export_model
torch.set_num_threads(1)
folder, *checkpoints = sys.argv[1:]
for number, checkpoint in enumerate(checkpoints):
    export_model(checkpoint, f"{folder}/{number}", settings=ExportConfig(verify_samples=8))
"""

DERIVE = """
import itertools, sys, torch
from pathlib import Path
from edgebert import export_single, quantize_bundle, tune_bundle, write_report

def derive(folder, bundle, data, results):
    for mode, precision in (("dynamic", "int8"), ("static", "int8"), ("weight-only", "int8"), ("weight-only", "int4")):
        overrides = {"mode": mode, "precision": precision}
        calibration = data if mode == "static" else None
        quantize_bundle(bundle, folder / f"{mode}-{precision}", overrides=overrides, calibration=calibration)
    quantize_bundle(bundle, folder / "mixed", overrides={"max_drop": 0.5}, evaluation=[data])
    for name, guarantee in (("tuned", None), ("guaranteed", (0.4, 0.1))):
        clock = itertools.count(0.0, 0.001).__next__  # latencies are measured, and no two runs measure the same
        tune_bundle(bundle, data, target=folder / name, threads=1, guarantee=guarantee, clock=clock)
    export_single(bundle, folder / "single.onnx")
    if results:
        write_report(results, folder / "report.html", svg=folder / "charts")

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, bundle, data, *results = map(Path, sys.argv[1:])
    derive(folder, bundle, data, results)
"""

TRAIN = """
import contextlib, os, signal, sys
from pathlib import Path
import torch
from edgebert.config import read_config
from edgebert.output import Reporter
from edgebert.training import loop, train_model
torch.set_num_threads(1)
config, target, kill_at, is_resumed = sys.argv[1:]
arguments = loop._arguments

def save_often(*given):
    made = arguments(*given)
    made.save_steps = 2
    return made

class Killer(Reporter):
    left = int(kill_at)

    def advanced(self, steps, note):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def track(self, title, total):
        return contextlib.nullcontext(self.advanced)

loop._arguments = save_often
train_model(read_config(Path(config)), target, seed=3, is_resumed=is_resumed == "True", reporter=Killer())
"""


def _python(code: str, *arguments: object, hash_seed: str = "0", ends: Sequence[int] = (0,), **variables: str) -> str:
    """Runs a program in a process of its own and returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode in ends, run.stderr[-3000:]
    return run.stdout


def _tree(folder: Path) -> dict[str, str]:
    """Returns the digest of each file under a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_answers_are_the_same_bytes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundles = [request.getfixturevalue(name) for name in BUNDLES]

    code = ANSWER + ANSWER_EVERY_WAY
    printed = [_python(code, *bundles, hash_seed=seed, EDGEBERT_CACHE=str(tmp_path / seed)) for seed in SEEDS]

    assert printed[0] == printed[1]
    assert [len(line.split()) for line in printed[0].splitlines()] == [1] * len(bundles)


def test_exports_are_the_same_bytes(
    tmp_path: Path,
    save_tiny_checkpoint: Callable[..., Path],
    geep_checkpoint: Path,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    methods = sorted(registry.names("edgebert.methods"), key=lambda name: name != "pabee")[: rounds(1, 9)]
    checkpoints = []
    for method in methods:
        module = registry.load("edgebert.methods", method)
        policy, knobs = module.rule(module.Config())
        points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
        is_counted = method == "geep"
        checkpoints.append(geep_checkpoint if is_counted else save_tiny_checkpoint({"name": method}, points))

    for seed in SEEDS:
        (tmp_path / seed).mkdir()
    _python(EXPORT, tmp_path / "1", *checkpoints, hash_seed="1")
    for number, checkpoint in enumerate(checkpoints):
        export_model(checkpoint, tmp_path / "2" / str(number), settings=ExportConfig(verify_samples=8))

    first, second = (_tree(tmp_path / seed) for seed in SEEDS)
    record_property("exported twice", f"{', '.join(methods)}: {len(first)} files")
    assert first == second
    assert len([name for name in first if name.endswith("edgebert.json")]) == len(methods)


def test_what_is_made_of_a_bundle_is_the_same_bytes(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sentiment_data: Path,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    data = sentiment_data / "validation.tsv"
    bundles = [request.getfixturevalue(name) for name in ("dact_bundle", "width_bundle")[: rounds(1, 2)]]
    results = request.getfixturevalue("result_files") if rounds(0, 1) else []  # they take a minute to make
    here: dict[str, Any] = {"__name__": "derive"}
    exec(DERIVE, here)
    for seed in SEEDS:
        for bundle in bundles:
            (tmp_path / seed / bundle.name).mkdir(parents=True)
    for bundle in bundles:
        _python(DERIVE, tmp_path / "1" / bundle.name, bundle, data, *results, hash_seed="1")
        here["derive"](tmp_path / "2" / bundle.name, bundle, data, results)

    first, second = (_tree(tmp_path / seed) for seed in SEEDS)
    record_property("made twice", f"{len(first)} files")
    assert first == second
    made = {Path(name).relative_to(bundles[0].name).parts[0] for name in first if name.startswith(bundles[0].name)}
    assert made == {
        *("dynamic-int8", "static-int8", "weight-only-int8", "weight-only-int4", "mixed", "tuned", "guaranteed"),
        *("single.onnx", *(("report.html", "charts") if results else ())),
    }


KILLS = [(7,), (3, 4, 6), (5, 5, 5), (1, 2, 3, 4)]
"""After how many steps each run is killed; stages have five, and what is done of them is saved after every second."""

METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "dact_bert": ({"name": "dact_bert", "trunk": 16}, 2),
    "dpbert": ({"name": "dpbert", "planner_width": 16}, 4),
    "fastbert": ({"name": "fastbert"}, 2),
    "dynamic_tinybert": ({"name": "dynamic_tinybert", "search_evaluations": 4}, 4),
}


@pytest.fixture
def make_config(tmp_path: Path, tiny_hf_folder: Path, sentiment_data: Path) -> Callable[[str], Path]:
    """Writes a method's configuration for stages of five steps each."""

    def make(method: str) -> Path:
        settings, stages = METHODS[method]
        train = TrainConfig(
            model=str(tiny_hf_folder),
            data=str(sentiment_data),
            max_length=32,
            batch_size=16,
            stage_epochs=(0.5, 0.0, 0.0, 0.5) if method == "dynamic_tinybert" else (0.5,) * stages,
            learning_rate=2e-3,
            tuning_rows=40,
            precision="fp32",
        )
        config = tmp_path / f"{method}.yaml"
        config.write_text(yaml.safe_dump(msgspec.to_builtins(RunConfig(method=settings, train=train))), "utf-8")
        return config

    return make


def _killed(config: Path, target: Path, kill_at: int, *, is_resumed: bool = False) -> bool:
    """Trains in a process of its own that kills itself after so many steps; says whether it came to that."""
    _python(TRAIN, config, target, kill_at, is_resumed, ends=(0, -signal.SIGKILL))
    return not target.exists()


Train = Callable[..., Path]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains here, and saves after every second step as those do that are killed."""
    arguments = loop._arguments

    def save_often(*given: Any) -> Any:
        made = arguments(*given)
        made.save_steps = 2
        return made

    def train(config: Path, target: Path, *, is_resumed: bool = False, seed: int = 3) -> Path:
        train_model(read_config(config), target, seed=seed, is_resumed=is_resumed)
        return target

    monkeypatch.setattr(loop, "_arguments", save_often)
    return train


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_training_killed_and_resumed_gives_the_same_checkpoint(
    tmp_path: Path,
    make_config: Callable[[str], Path],
    train: Train,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    """Real kills, in the middle of stages and at their ends, several in one training."""
    kills = 0
    for method in list(METHODS)[: rounds(1, len(METHODS))]:
        config = make_config(method)
        expected = _tree(train(config, tmp_path / method))
        assert expected["model.safetensors"] != _tree(train(config, tmp_path / "other", seed=4))["model.safetensors"]
        shutil.rmtree(tmp_path / "other")
        for number, steps in enumerate(KILLS[: rounds(1, len(KILLS))]):
            out = tmp_path / f"{method}-{number}"
            for again, at in enumerate(steps):
                kills += not out.exists() and _killed(config, out, at, is_resumed=again > 0)
            if not out.exists():
                train(config, out, is_resumed=True)
            assert _tree(out) == expected, (method, steps)
        unkilled = tmp_path / f"{method}-unkilled"
        assert rounds(1, 0) or not _killed(config, unkilled, 10_000)
        assert rounds(1, 0) or _tree(unkilled) == expected

    record_property("killed and resumed", f"{kills} times")
    assert kills > 0


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:mtime may not be reliable")
def test_a_save_that_was_cut_off_is_passed_over(
    tmp_path: Path,
    make_config: Callable[[str], Path],
    train: Train,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    config = make_config("dact_bert")
    expected = _tree(train(config, tmp_path / "whole"))
    assert _killed(config, tmp_path / "killed", 8)
    work = tmp_path / ".killed.training"
    (saved,) = (work / "1-joint").glob("checkpoint-*")
    written = sorted(saved.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert written[-1].name == "trainer_state.json"

    for whole in range(len(written))[-rounds(2, len(written)) :]:
        cut = shutil.copytree(work, tmp_path / f".{whole}.training") / "1-joint" / "checkpoint-4"
        cut.mkdir()
        for number, file in enumerate(written[: whole + 1]):
            (cut / file.name).write_bytes(file.read_bytes()[: 40 if number == whole else None])

        assert _tree(train(config, tmp_path / str(whole), is_resumed=True)) == expected, written[whole]
    record_property("cut off in", ", ".join(file.name for file in written[-rounds(2, len(written)) :]))
