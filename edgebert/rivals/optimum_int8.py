"""optimum_int8: the static model exported and dynamically quantized by optimum, with its settings for AVX512-VNNI."""

from __future__ import annotations

import tempfile
from typing import Any

import onnxruntime

from edgebert.errors import require
from edgebert.rivals import optimum


class Side(optimum.Side):
    """The rival `optimum` in int8: weights in int8 for each channel, scales of activations found as they come."""

    precision = "int8"

    def finish(self, exported: Any, options: onnxruntime.SessionOptions) -> Any:
        """Returns the quantized model."""
        tools = require("optimum.onnxruntime", extra="optimum", purpose="bench --against optimum_int8")
        settings = tools.AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        with tempfile.TemporaryDirectory() as folder:
            tools.ORTQuantizer.from_pretrained(exported).quantize(settings, folder)
            return type(exported).from_pretrained(folder, provider="CPUExecutionProvider", session_options=options)
