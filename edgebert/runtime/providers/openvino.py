"""openvino: OpenVINO on the processor, in fp32. Of the extra `openvino`."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from edgebert.runtime.providers import _openvino

FULL_NAME = "OpenVINO"
ON_PROCESSOR = True


def missing() -> str | None:
    """Returns why it cannot be used here; None where it can."""
    return _openvino.missing()


def make(
    model: bytes | Path, name: str, threads: int, session_options: onnxruntime.SessionOptions | None
) -> _openvino.OpenVinoGraph:
    """Loads a graph; see `edgebert.runtime.sessions.make_graph`."""
    return _openvino.make_openvino(model, name, threads, session_options, "f32")
