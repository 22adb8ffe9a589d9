"""`edgebert export --layout`: what it makes of a checkpoint and of a bundle, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgebert import export_single
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import SINGLE_NAME
from edgebert.cli import cli
from edgebert.errors import ConfigError, EdgeBertError


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["export", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    return done.output


def test_bundle_to_file(dact_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "single.onnx"

    out = _run(dact_bundle, target, "--layout", "single", "--point", "confidence", "--verify-samples", 3)

    assert "agrees with the bundle on 3 inputs; policy confidence, knobs threshold=[0.75]" in out
    export_single(dact_bundle, tmp_path / "same.onnx", point="confidence", samples=1)
    assert target.read_bytes() == (tmp_path / "same.onnx").read_bytes()


def test_bundle_to_bundle(dact_bundle: Path, tmp_path: Path) -> None:
    _run(dact_bundle, tmp_path / "both", "--layout", "both", "--verify-samples", 1, "--json")

    assert open_bundle(tmp_path / "both").has(SINGLE_NAME)
    assert not open_bundle(dact_bundle).has(SINGLE_NAME)


@pytest.mark.parametrize("layout", ["single", "both"])
def test_checkpoint(dact_checkpoint: Path, dact_bundle: Path, tmp_path: Path, layout: str) -> None:
    target = tmp_path / {"single": "single.onnx", "both": "both"}[layout]

    out = _run(dact_checkpoint, target, "--layout", layout, "--verify-samples", 1, "--json")

    made = target if layout == "single" else target / SINGLE_NAME
    same = export_single(dact_bundle, tmp_path / "same.onnx", samples=1)
    assert made.read_bytes() == same.read_bytes()
    if layout == "single":
        facts = json.loads(out[out.index("{") :])
        assert facts == {"schema": "edgebert.single/1", "file": str(target), "bytes": target.stat().st_size}


def test_refusals(dact_bundle: Path, dact_checkpoint: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")

    with pytest.raises(ConfigError, match=r"is a bundle; of one a single file is made, with --layout single or both"):
        _run(dact_bundle, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"--precision and --link say nothing"):
        _run(dact_bundle, tmp_path / "x.onnx", "--layout", "single", "--opset", 20)
    with pytest.raises(ConfigError, match=r"--point goes with --layout single"):
        _run(dact_checkpoint, tmp_path / "x", "--layout", "both", "--point", "confidence")
    with pytest.raises(ConfigError, match=r"--knobs goes with --layout single"):
        _run(dact_checkpoint, tmp_path / "x", "--knobs", "required")
    with pytest.raises(EdgeBertError, match=r"there.onnx: exists already; use --force"):
        _run(dact_checkpoint, there, "--layout", "single")
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert there.read_bytes() == b"mine"


def test_force_replaces_a_file(dact_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "single.onnx"
    target.write_bytes(b"old")

    _run(dact_bundle, target, "--layout", "single", "--verify-samples", 1, "--force")

    assert target.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["single.onnx"]
