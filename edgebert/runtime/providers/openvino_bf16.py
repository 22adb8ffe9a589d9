"""openvino_bf16: OpenVINO on a processor that computes in bf16 (AMX or AVX512-BF16). Of the extra `openvino`.

bf16 keeps 8 bits of a number, so answers differ in the third digit, and some decisions with them; see the README.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from edgebert.runtime.providers import _openvino

FULL_NAME = "OpenVINO bf16"
ON_PROCESSOR = True


def missing() -> str | None:
    """Returns why it cannot be used here; None where it can."""
    if (reason := _openvino.missing()) is not None:
        return reason
    return None if _openvino.has_bf16() else "this processor does not compute in bf16; use the provider openvino."


def make(
    model: bytes | Path, name: str, threads: int, session_options: onnxruntime.SessionOptions | None
) -> _openvino.OpenVinoGraph:
    """Loads a graph; see `edgebert.runtime.sessions.make_graph`."""
    return _openvino.make_openvino(model, name, threads, session_options, "bf16")
