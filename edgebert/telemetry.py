"""Nobody is told that edgebert ran: two packages it runs on report home unless they are kept from it before they start.

ONNX Runtime reports to Microsoft from 1.29 on, with an identifier of the machine that it keeps in the user's cache, and
looks at the environment once, when it is imported. OpenVINO reports to Intel by a package that it brings along and can
do without.
"""

from __future__ import annotations

import os
import sys


def silence_onnxruntime() -> None:
    """Keeps ONNX Runtime from reporting, unless the environment says otherwise or it was imported before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def silence_openvino() -> None:
    """Keeps OpenVINO from reporting, unless it was imported before."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is what cannot be imported
