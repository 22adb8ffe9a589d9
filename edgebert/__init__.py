"""edgebert: BERT models that do only the work each input needs, on ONNX Runtime.

from edgebert import EdgeModel
model = EdgeModel.from_pretrained("bundle/")
print(model("a gripping film").label)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgebert.telemetry import silence_onnxruntime

if TYPE_CHECKING:
    from edgebert.bench import bench_bundles
    from edgebert.config import read_config
    from edgebert.errors import EdgeBertError
    from edgebert.evaluate import evaluate_bundle
    from edgebert.export import export_model
    from edgebert.quantize import quantize_bundle
    from edgebert.report import write_report
    from edgebert.runtime.model import EdgeModel
    from edgebert.runtime.results import Answer, Prediction
    from edgebert.single import export_single
    from edgebert.training import train_model
    from edgebert.tune import tune_bundle
    from edgebert.verify import verify_bundle

__version__ = "0.1.0"

silence_onnxruntime()

_HOMES = {
    "Answer": "edgebert.runtime.results",
    "EdgeBertError": "edgebert.errors",
    "EdgeModel": "edgebert.runtime.model",
    "Prediction": "edgebert.runtime.results",
    "bench_bundles": "edgebert.bench",
    "evaluate_bundle": "edgebert.evaluate",
    "export_model": "edgebert.export",
    "export_single": "edgebert.single",
    "quantize_bundle": "edgebert.quantize",
    "read_config": "edgebert.config",
    "train_model": "edgebert.training",
    "tune_bundle": "edgebert.tune",
    "verify_bundle": "edgebert.verify",
    "write_report": "edgebert.report",
}

__all__ = [
    "Answer",
    "EdgeBertError",
    "EdgeModel",
    "Prediction",
    "__version__",
    "bench_bundles",
    "evaluate_bundle",
    "export_model",
    "export_single",
    "quantize_bundle",
    "read_config",
    "train_model",
    "tune_bundle",
    "verify_bundle",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that importing edgebert is quick and the heavy parts stay out."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgebert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
