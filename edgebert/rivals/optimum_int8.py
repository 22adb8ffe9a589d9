"""optimum_int8: the static model quantized by optimum, with its settings for this processor."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Collection

from edgebert.processor import cpu_features
from edgebert.rivals import optimum

TAKES_REFERENCE = True


class Side(optimum.Side):
    """The rival `optimum` in int8: weights in int8 for each channel, scales of activations found as they come."""

    precision = "int8"

    def write_onnx(self, folder: str) -> None:
        """Writes the quantized model."""
        choice = settings_for(platform.machine(), cpu_features())
        settings = getattr(self.tools.AutoQuantizationConfig, choice)(is_static=False, per_channel=True)
        with tempfile.TemporaryDirectory() as checkpoint:
            exported = self.export(checkpoint)  # its file is there as long as this is
            self.tools.ORTQuantizer.from_pretrained(exported).quantize(settings, folder)


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
