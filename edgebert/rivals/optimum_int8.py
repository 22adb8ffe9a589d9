"""optimum_int8: the static model quantized by optimum, with its settings for this processor."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Collection
from typing import Any

import onnxruntime

from edgebert.errors import require
from edgebert.host import cpu_features
from edgebert.rivals import optimum

TAKES_REFERENCE = True


class Side(optimum.Side):
    """The rival `optimum` in int8: weights in int8 for each channel, scales of activations found as they come."""

    precision = "int8"

    def finish(self, exported: Any, options: onnxruntime.SessionOptions) -> Any:
        """Returns the quantized model."""
        tools = require("optimum.onnxruntime", extra="optimum", purpose="bench --against optimum_int8")
        choice = settings_for(platform.machine(), cpu_features())
        settings = getattr(tools.AutoQuantizationConfig, choice)(is_static=False, per_channel=True)
        with tempfile.TemporaryDirectory() as folder:
            tools.ORTQuantizer.from_pretrained(exported).quantize(settings, folder)
            return type(exported).from_pretrained(folder, provider="CPUExecutionProvider", session_options=options)


def settings_for(machine: str, features: Collection[str]) -> str:
    """Returns which of optimum's settings suit a processor.

    Args:
        machine: Its architecture, as `platform.machine` names it.
        features: Its features; none known: what every such processor has.

    >>> settings_for("x86_64", {"avx2", "avx512f", "avx512_vnni"})
    'avx512_vnni'
    """
    if machine.lower() in ("arm64", "aarch64"):
        return "arm64"
    for feature, choice in (("avx512_vnni", "avx512_vnni"), ("avx512f", "avx512")):
        if feature in features:
            return choice
    return "avx2"
