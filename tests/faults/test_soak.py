"""A process that serves for long: memory stays flat, and the same question gets the same bytes at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgebert.bundle.manifest import OperatingPoint
from edgebert.config import ExportConfig
from edgebert.export import export_model

SOAK = Path(__file__).with_name("_soak.py")


def test_private_memory_is_flat_and_answers_do_not_drift(
    tmp_path: Path,
    save_tiny_checkpoint: Callable[..., Path],
    token_bundle: Path,
    geep_bundle: Path,
    rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:
    points = {"default": OperatingPoint(policy="halting", knobs={"slack": 0.0, "bound": "paper"})}
    checkpoint = save_tiny_checkpoint(
        {"name": "dact_bert", "trunk": 16, "halt_bias": 0.0}, points, max_positions=512, max_length=512
    )
    bundle = export_model(checkpoint, tmp_path / "long", settings=ExportConfig(verify_samples=8)).path

    run = subprocess.run(
        [sys.executable, str(SOAK), str(rounds(6, 600)), str(bundle), str(token_bundle), str(geep_bundle)],
        env={**os.environ, "EDGEBERT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout)
    private_mb, files, threads = np.array(told["samples"]).T
    fifth = len(private_mb) // 5
    before, after = np.median(private_mb[fifth : 2 * fifth]), np.median(private_mb[-fifth:])
    record_property("calls", ", ".join(f"{count} {name}" for name, count in sorted(told["done"].items())))
    told_mb = f"{before:.1f} in the second fifth, {after:.1f} in the last, {private_mb.max():.1f} at most"
    record_property("private MB", told_mb)
    record_property("the same batch", f"asked {sum(told['digests'].values())} times, {len(told['digests'])} answers")
    held = [f"{files[at]:.0f} files and {threads[at]:.0f} threads" for at in (fifth, -1)]
    record_property("open", " at first, ".join(held) + " at the end")
    assert len(told["digests"]) == 1
    # A few seconds are too short for the arena to have seen every size.
    assert after <= before * (1 + rounds(15, 2) / 100)
    assert np.median(files[-fifth:]) <= np.median(files[fifth : 2 * fifth])
    assert np.median(threads[-fifth:]) <= np.median(threads[fifth : 2 * fifth])
