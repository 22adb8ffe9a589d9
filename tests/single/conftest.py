"""What the tests of the single file share: tiny bundles of every method, and how a file is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgebert import registry
from edgebert.bundle.manifest import OperatingPoint
from edgebert.config import ExportConfig
from edgebert.export import export_model

Rows = list[dict[str, NDArray[np.int64]]]


@pytest.fixture(scope="session")
def bundle_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, save_tiny_checkpoint: Callable[..., Path]
) -> Callable[..., Path]:
    """Returns a tiny bundle with random weights of a method with its settings, made once; its default is its own rule.

    `link` says whether exits stand in the graphs of layers; other arguments are those of `save_tiny_checkpoint`.
    """
    made: dict[str, Path] = {}

    def make(method: str, settings: Mapping[str, Any] | None = None, *, link: bool = True, **changes: object) -> Path:
        if method == "geep" and not settings and not changes:
            path: Path = request.getfixturevalue("geep_bundle")
            return path
        key = f"{method} {settings} {link} {sorted(changes.items())}"
        if key not in made:
            module = registry.load("edgebert.methods", method)
            policy, knobs = module.rule(module.Config())
            points = {"default": OperatingPoint(policy=policy, knobs=knobs)}
            checkpoint = save_tiny_checkpoint({"name": method, **(settings or {})}, points, **changes)
            config = ExportConfig(verify_samples=1, link=link)
            made[key] = export_model(checkpoint, tmp_path_factory.mktemp("single") / method, settings=config).path
        return made[key]

    return make


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Twelve rows of 3 to 40 tokens, each alone in its batch; the last one with padding."""
    rng = np.random.default_rng(5)
    made = []
    for tokens in (3, 4, 6, 7, 9, 12, 16, 21, 25, 30, 40, 14):
        ids = rng.integers(4, 100, (1, tokens))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": (ids > 60).astype(int)})
    made[-1]["attention_mask"][:, -3:] = 0
    return made


@pytest.fixture(scope="session")
def run_single() -> Callable[..., list[dict[str, NDArray[Any]]]]:
    """Runs rows through a single file, with stock ONNX Runtime; further arguments are the file's other inputs."""

    def run(file: Path | bytes, rows: Rows, **knobs: NDArray[Any]) -> list[dict[str, NDArray[Any]]]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else str(file), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        read = {value.name for value in session.get_inputs()}
        return [
            dict(zip(names, session.run(names, {**{k: v for k, v in row.items() if k in read}, **knobs}), strict=True))
            for row in rows
        ]

    return run
