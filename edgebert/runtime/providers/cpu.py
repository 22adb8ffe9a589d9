"""cpu: ONNX Runtime on the processor."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from edgebert.runtime.sessions import SessionGraph, make_options, open_session

FULL_NAME = "CPUExecutionProvider"
ON_PROCESSOR = True


def missing() -> str | None:
    """Returns why it cannot be used here; it always can."""
    return None


def make(
    model: bytes | Path, name: str, threads: int, session_options: onnxruntime.SessionOptions | None
) -> SessionGraph:
    """Loads a graph; see `edgebert.runtime.sessions.make_graph`."""
    options = session_options or make_options(threads)
    if isinstance(model, Path):  # prepared: it was optimised when it was written
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return SessionGraph(open_session(model, name, options, [(FULL_NAME, {})]))
