"""edgebert demo: the main job, whole, on an embedded default; minutes on 2 cores, no network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgebert import demo_data
from edgebert.bundle.publish import check_target, publish
from edgebert.config import ExportConfig, RunConfig, TrainConfig
from edgebert.export import export_model
from edgebert.measure import Measured, measure
from edgebert.output import Reporter, markdown_table
from edgebert.runtime.model import EdgeModel
from edgebert.training import train_model

_TRAIN = TrainConfig(
    model="embedded:minilm-l6",
    max_length=64,
    batch_size=32,
    stage_epochs=(1.0, 3.0),
    learning_rate=1.0e-4,
    head_learning_rate_factor=10.0,
    tuning_rows=400,
    max_drop_points=0.5,
)
_PLAIN_EPOCHS = (2.0,)
_TIMED_TEXTS = 300


def run_demo(folder: Path, *, seed: int = 0, force: bool = False, reporter: Reporter | None = None) -> str:
    """Generates voice commands, trains a static and an adaptive model, exports, verifies and runs both.

    Args:
        folder: Where data, checkpoints and bundles go.
        seed: Of the data and the training.
        force: Replace an earlier run.
        reporter: Where progress goes.

    Returns:
        A table of accuracy, layers and latency, and the commands to try next.

    Raises:
        EdgeBertError: The folder cannot be written.
        MissingExtraError: The extra `demo` is not installed.
    """
    reporter = reporter or Reporter()
    start = time.monotonic()
    check_target(folder, force=force, kind="demo")
    with publish(folder, force=force) as empty:
        (empty / "data").mkdir()
        (empty / "edgebert.txt").write_text("Made by edgebert demo.\n", encoding="utf-8")
        data = demo_data.generate(seed)
        demo_data.write(data, empty / "data")
    reporter.say(f"{len(data.train)} voice commands to train on, {len(data.test)} to test, {len(data.labels)} intents")
    configs = {
        "plain": RunConfig(method={"name": "plain"}, train=_train(folder, _PLAIN_EPOCHS), export=ExportConfig()),
        "dact_bert": RunConfig(
            method={"name": "dact_bert", "tau": 0.03}, train=_train(folder, _TRAIN.stage_epochs), export=ExportConfig()
        ),
    }
    for name, config in configs.items():
        checkpoint = folder / f"{name}.checkpoint"
        train_model(config, checkpoint, seed=seed, reporter=reporter)
        export_model(checkpoint, folder / f"{name}.bundle", reporter=reporter)
    table = _measure(folder, data, reporter)
    reporter.say(f"done in {time.monotonic() - start:.0f} s")
    bundle = folder / "dact_bert.bundle"
    return "\n".join(
        [
            table,
            "",
            "Try next:",
            f'  edgebert run {bundle} "turn on the kitchen lights" "not the lights, play some jazz" --trace',
            f"  edgebert eval {bundle} {folder / 'plain.bundle'} --data {folder / 'data' / 'test.tsv'} "
            "--policy default --policy confidence --policy never",
            f"  edgebert bench {bundle} --against {folder / 'plain.bundle'} --data {folder / 'data' / 'test.tsv'}",
        ]
    )


def _train(folder: Path, stage_epochs: tuple[float, ...]) -> TrainConfig:
    import msgspec

    return msgspec.structs.replace(_TRAIN, data=str(folder / "data"), stage_epochs=stage_epochs)


def _measure(folder: Path, data: demo_data.DemoData, reporter: Reporter) -> str:
    """Returns the table: the static model, then the adaptive one under its policies."""
    rows = []
    hard = np.array([difficulty == "hard" for difficulty in data.test_difficulty])
    with (
        EdgeModel.from_pretrained(folder / "plain.bundle", threads=1) as static,
        EdgeModel.from_pretrained(folder / "dact_bert.bundle", threads=1) as adaptive,
    ):
        static_ms, adaptive_ms = _latencies(static, adaptive, data)
        plain = measure(static, data.test, reporter=reporter, name="plain")
        rows.append(_row("plain, all layers", plain, hard, static_ms, static_ms))
        for policy, ms in adaptive_ms.items():
            adaptive.set_policy(policy)
            measured = measure(adaptive, data.test, reporter=reporter, name="dact_bert", policy=policy)
            rows.append(_row(f"dact_bert, {policy}", measured, hard, ms, static_ms))
    headers = ("model, policy", "accuracy", "easy", "hard", "layers: all", "easy", "hard", "ms per text", "speed-up")
    return markdown_table(headers, rows)


def _latencies(static: EdgeModel, adaptive: EdgeModel, data: demo_data.DemoData) -> tuple[float, dict[str, float]]:
    """Times single texts, the models taking turns on each; returns medians of ms per text over three rounds."""
    texts = [example.text for example in data.test[:_TIMED_TEXTS]]
    encoded = static.encode(texts)
    policies = ("default", "confidence")
    rounds: dict[str, list[float]] = {"static": [], **{policy: [] for policy in policies}}
    for _ in range(4):
        seconds = dict.fromkeys(rounds, 0.0)
        for row in encoded:
            for name in rounds:
                model = static if name == "static" else adaptive
                if name != "static":
                    model.set_policy(name)
                start = time.perf_counter()
                model.run_encoded([row], batch_size=1)
                seconds[name] += time.perf_counter() - start
        for name, total in seconds.items():
            rounds[name].append(total * 1000 / len(encoded))
    medians = {name: float(np.median(times[1:])) for name, times in rounds.items()}
    return medians.pop("static"), medians


def _row(
    name: str, measured: Measured, hard: np.ndarray[tuple[int], np.dtype[np.bool_]], ms: float, static_ms: float
) -> Sequence[str]:
    layers, correct = measured.exit_layer, measured.correct
    assert correct is not None
    return (
        name,
        f"{correct.mean():.3f}",
        f"{correct[~hard].mean():.3f}",
        f"{correct[hard].mean():.3f}",
        f"{layers.mean():.2f}",
        f"{layers[~hard].mean():.2f}",
        f"{layers[hard].mean():.2f}",
        f"{ms:.2f}",
        f"{static_ms / ms:.2f} x",
    )
