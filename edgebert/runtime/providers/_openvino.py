"""Graphs in OpenVINO's own runtime.

Departure: as a plugin of ONNX Runtime, OpenVINO refuses every processor that is not Intel's
(https://github.com/microsoft/onnxruntime/pull/31981), and leaves `Attention` and what hangs on it to the CPU
provider; its own runtime takes whole graphs on any processor, and was measured up to 6 % faster.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BundleError, ConfigError
from edgebert.runtime.forks import keep_in_child
from edgebert.telemetry import silence_openvino
from edgebert.text import Values

_INSTALL = "openvino is not installed: pip install 'edgebert[openvino]'"


def missing() -> str | None:
    """Returns why OpenVINO cannot be used here; None where it can."""
    return None if importlib.util.find_spec("openvino") is not None else _INSTALL


def has_bf16() -> bool:
    """Says whether this processor computes in bf16, as OpenVINO sees it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def make_openvino(
    model: bytes | Path, name: str, threads: int, session_options: object, precision: str
) -> OpenVinoGraph:
    """Loads a graph.

    Args:
        model: The bytes of an ONNX file.
        name: What messages call it.
        threads: Threads inside an operator.
        session_options: Must be None: they are ONNX Runtime's.
        precision: What to compute in: `f32` or `bf16`.

    Raises:
        BundleError: OpenVINO cannot load it.
        ConfigError: There are `session_options`, or `model` was prepared for the CPU provider.
    """
    if session_options is not None:
        raise ConfigError("session_options: belong to ONNX Runtime; the provider openvino takes none.")
    if isinstance(model, Path):
        raise ConfigError(f"{name}: was prepared for the provider cpu; the provider openvino reads the bundle itself.")
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    core = _core()
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
    except RuntimeError as error:
        raise BundleError(f"{name}: OpenVINO cannot load it: {' '.join(str(error).split())[:300]}") from error
    return OpenVinoGraph(compiled)


class OpenVinoGraph:
    """A graph that OpenVINO compiled. Safe to run from several threads: each has its own request."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._of_thread = threading.local()
        keep_in_child(self)
        self.inputs = tuple(value.get_any_name() for value in compiled.inputs)
        self.outputs = [value.get_any_name() for value in compiled.outputs]

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph; see `edgebert.runtime.graphs.Graph`."""
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        request.infer({name: values[name] for name in self.inputs}, share_inputs=True)
        # The request writes its next outputs where these are.
        made = (np.array(request.get_output_tensor(number).data) for number in range(len(self.outputs)))
        return dict(zip(names, made, strict=True))


@lru_cache(maxsize=1)
def _core() -> Any:
    silence_openvino()
    import openvino

    return openvino.Core()
