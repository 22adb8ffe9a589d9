"""openvino_bf16: the rival `openvino` in bf16, on processors that have it."""

from __future__ import annotations

from edgebert.errors import ConfigError, require
from edgebert.rivals import openvino
from edgebert.rivals._protocol import Spec
from edgebert.telemetry import silence_openvino

TAKES_REFERENCE = True


class Side(openvino.Side):
    """The rival `openvino`, told to compute in bf16.

    Raises:
        ConfigError: The processor has no bf16, where OpenVINO would quietly compute in fp32 or emulate it.
    """

    hint = "bf16"
    wanted = "bf16"

    def __init__(self, spec: Spec) -> None:
        silence_openvino()
        tools = require("openvino", extra="bench-openvino", purpose=f"bench --against {spec.side}")
        able = tools.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able:
            raise ConfigError(
                f"--against {spec.side}: this processor has no bf16 (OpenVINO lists {', '.join(able)}); "
                "take the rival openvino, or one with avx512_bf16 or amx_bf16."
            )
        super().__init__(spec)
