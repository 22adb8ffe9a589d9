"""The single file of every method: what the split runtime says, and what it is as a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebert import export_single, quantize_bundle, registry, tune_bundle
from edgebert.bundle import open_bundle
from edgebert.bundle.manifest import SINGLE_NAME, OperatingPoint
from edgebert.config import QuantizeConfig
from edgebert.derive import derive
from edgebert.errors import ConfigError, EdgeBertError, QualityError
from edgebert.runtime.model import EdgeModel
from edgebert.single import add_single, single_bytes
from edgebert.single._check import check_single

DOUBLE, INT64 = np.float64, np.int64

# Method, its settings, the policy with the knobs the file is made with, and knobs given to it at run time.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any], list[dict[str, Any]]]] = [
    ("plain", {}, "never", {}, [{}]),
    ("plain", {"pool": "attention"}, "never", {}, [{}]),
    ("dact_bert", {"halt_bias": 0.0}, "halting", {}, [{"slack": slack} for slack in (0.0, 0.1, 0.5, 2.0, 10.0)]),
    ("dact_bert", {"halt_bias": 0.0}, "halting", {"bound": "tight"}, [{"slack": slack} for slack in (0.0, 0.3)]),
    ("dact_bert", {}, "confidence", {}, [{"threshold": threshold} for threshold in (0.0, 0.6, 0.8, 0.95, 1.5)]),
    ("dact_bert", {}, "never", {}, [{}]),
    ("dact_bert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("fastbert", {}, "entropy", {}, [{"threshold": threshold} for threshold in (0.0, 0.2, 0.5, 0.8, 1.1)]),
    ("fastbert", {}, "confidence", {}, [{"threshold": threshold} for threshold in (0.55, 0.9)]),
    ("fastbert", {}, "never", {}, [{}]),
    ("deebert", {}, "entropy", {"scale": "nats"}, [{"threshold": threshold} for threshold in (0.0, 0.2, 0.5, 5.0)]),
    ("deebert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("pabee", {}, "patience", {}, [{"patience": patience} for patience in (1, 2, 3)]),
    ("pabee", {}, "never", {}, [{}]),
    ("geep", {}, "predicted_exit", {}, [{"offset": o, "gain": g} for o, g in ((0, 1), (-1, 1), (9, 1), (0.2, 8))]),
    ("geep", {}, "predicted_exit", {"prediction": "mode"}, [{"offset": offset} for offset in (-5.0, 0.0, 1.0)]),
    ("geep", {}, "predicted_exit", {"prediction": "quantile"}, [{"quantile": share} for share in (0.1, 0.5, 0.9, 1.0)]),
    ("geep", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("geep", {}, "never", {}, [{}]),
    ("dpbert", {}, "bypass", {}, [{"delta": delta} for delta in (0.0, 0.3, 0.5, 0.7, 1.0)]),
    ("dpbert", {"planner": "upfront"}, "bypass", {}, [{"delta": delta} for delta in (0.0, 0.3, 0.5, 0.7, 1.0)]),
    ("dpbert", {}, "path", {"layers": "1,3"}, [{"layers": layers} for layers in ([1, 3], [2], [3], [1, 2, 3])]),
    ("dpbert", {"planner": "upfront"}, "path", {"layers": "1,3"}, [{"layers": layers} for layers in ([1, 3], [2])]),
    ("dpbert", {}, "fixed", {}, [{"layer": layer} for layer in (1, 2, 3)]),
    ("dpbert", {}, "never", {}, [{}]),
    ("tbert", {}, "width", {}, [{"width": width} for width in (0.01, 0.25, 0.5, 0.75, 1.0)]),
    ("tbert", {}, "width", {"exact_budget": True}, [{"width": width} for width in (0.1, 0.5, 0.75, 1.0)]),
    ("tbert", {"block_size": 1}, "width", {}, [{"width": width} for width in (0.25, 0.5)]),
    ("tbert", {}, "never", {}, [{}]),
    ("dynamic_tinybert", {}, "lengths", {"lengths": "0.5,0.25"}, [{"lengths": "0.5,0.25,0.25"}, {"lengths": "1.0,0.1"}]),
    ("dynamic_tinybert", {}, "lengths", {"lengths": "9,4,2"}, [{"lengths": "9,4,2"}, {"lengths": "50,50,1"}]),
    ("dynamic_tinybert", {}, "lengths", {}, [{"lengths": "1.0"}]),
    ("dynamic_tinybert", {}, "never", {}, [{}]),
]
WHOLE = ("layer", "layers", "patience")


def _inputs(knobs: dict[str, Any], layers: int = 3) -> dict[str, Any]:
    """Returns knobs as the file's inputs take them."""
    if "lengths" in knobs:
        parts = knobs["lengths"].split(",")
        every_layer = [*parts, *[parts[-1]] * layers][:layers]
        is_share = "." in parts[0]
        return {"lengths": np.array(every_layer, DOUBLE if is_share else INT64)}
    return {name: np.atleast_1d(np.array(value, INT64 if name in WHOLE else DOUBLE)) for name, value in knobs.items()}


@pytest.mark.parametrize(
    ("method", "settings", "policy", "knobs", "runs"), CASES, ids=lambda value: str(value)[:30].replace(" ", "")
)
def test_answers_as_the_split_runtime_does(
    bundle_of: Callable[..., Path],
    run_single: Callable[..., Any],
    rows: Any,
    method: str,
    settings: dict[str, Any],
    policy: str,
    knobs: dict[str, Any],
    runs: list[dict[str, Any]],
) -> None:
    bundle = open_bundle(bundle_of(method, settings))
    point = OperatingPoint(policy=policy, knobs=knobs)
    with_point = derive_point(bundle, point)
    data = single_bytes(with_point, "tried", samples=2)

    with EdgeModel(bundle, threads=1) as model:
        for run in runs:
            model.set_policy(policy, **{**knobs, **run, **_as_text(run)})
            made = run_single(data, rows, **_inputs(run))
            for row, got in zip(rows, made, strict=True):
                expected = model.forward(**row)
                assert got["exit_layer"].tolist() == expected.exit_layer.tolist()
                assert np.array_equal(got["path"], expected.path)
                assert got["logits"].dtype == np.float32
                assert np.abs(got["logits"] - expected.logits).max() <= 1e-4


def derive_point(bundle: Any, point: OperatingPoint) -> Any:
    """Returns a bundle that has an operating point named `tried` too, in memory."""
    import msgspec

    points = {**bundle.manifest.operating_points, "tried": point}
    manifest = msgspec.structs.replace(bundle.manifest, operating_points=points)
    return type(bundle)(bundle.path, manifest)


def _as_text(run: dict[str, Any]) -> dict[str, Any]:
    return {"layers": ",".join(map(str, run["layers"]))} if "layers" in run else {}
