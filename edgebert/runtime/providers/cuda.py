"""cuda: ONNX Runtime on an NVIDIA GPU.

Hidden states stay on the device from graph to graph. All sessions work on one stream, CUDA's default one, so that
they need not wait for each other: a call returns at once unless it gives something that is read here, such as an
exit's scores.

Departure: rows that leave are taken out by a small graph on the device, but rows that skip a layer, and tokens that
are dropped, are put together again on the processor.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from edgebert.errors import ConfigError
from edgebert.runtime.providers import _device
from edgebert.runtime.sessions import make_options, open_session

FULL_NAME = "CUDAExecutionProvider"
ON_PROCESSOR = False


def missing() -> str | None:
    """Returns why it cannot be used here; None where it can."""
    available = onnxruntime.get_available_providers()
    if FULL_NAME in available:
        return None
    return f"this onnxruntime has only {', '.join(available)}; install onnxruntime-gpu in its place."


def make(
    model: bytes | Path, name: str, threads: int, session_options: onnxruntime.SessionOptions | None
) -> _device.DeviceGraph:
    """Loads a graph; see `edgebert.runtime.sessions.make_graph`.

    Raises:
        ConfigError: `model` was prepared for the processor.
        MissingExtraError: ONNX Runtime would silently use another provider.
    """
    if isinstance(model, Path):
        raise ConfigError(f"{name}: was prepared for the processor; the provider cuda reads the bundle itself.")
    options = session_options or make_options(threads)
    session = open_session(model, name, options, _device.providers_of("cuda"))
    return _device.DeviceGraph(session, "cuda")
