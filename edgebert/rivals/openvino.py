"""openvino: the static model converted from PyTorch and run by OpenVINO on the processor, in fp32."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import ConfigError, require
from edgebert.rivals._hugging_face import HuggingFaceSide, inputs_of
from edgebert.rivals._protocol import Spec
from edgebert.telemetry import silence_openvino
from edgebert.text import Values

TAKES_REFERENCE = True
_NAMES = {"f32": "fp32", "bf16": "bf16", "i8": "int8", "u8": "int8"}


class Side(HuggingFaceSide):
    """A model of `transformers` through `openvino.convert_model`, any batch size and length, tuned for latency.

    `precision` is what OpenVINO says most of its matrix products with weights really run in.

    Raises:
        ConfigError: The processor cannot run it in the wanted precision.
        MissingExtraError: openvino is not installed.
    """

    hint = "f32"
    wanted = "fp32"

    def __init__(self, spec: Spec) -> None:
        self.purpose = f"bench --against {spec.side}"
        silence_openvino()
        self._openvino = require("openvino", extra="bench-openvino", purpose=self.purpose)
        torch = require("torch", extra="train", purpose=self.purpose)
        super().__init__(spec)
        ids = torch.ones((2, 7), dtype=torch.int64)
        example = inputs_of(self.model, {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids})
        # Tracing warns of constants that do not depend on the input.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = self._openvino.convert_model(self.model, example_input=dict(example))
        self.intermediate = self.finish(converted, spec)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": spec.threads,
            "INFERENCE_PRECISION_HINT": self.hint,
        }
        self._compiled = self._openvino.Core().compile_model(self.intermediate, "CPU", settings)
        self.precision = _precision_run(self._compiled)
        if self.precision != self.wanted:
            raise ConfigError(
                f"--against {spec.side}: OpenVINO would run {self.precision} on this processor, not {self.wanted}; "
                "time it on one that has it, or take the rival openvino."
            )

    def finish(self, converted: Any, spec: Spec) -> Any:
        """Returns the model to compile, from the converted one."""
        return converted

    def write_model(self, folder: Path) -> list[str]:
        """Writes the converted model, its weights as they are."""
        self._openvino.save_model(self.intermediate, folder / "model.xml", compress_to_fp16=False)
        return ["openvino", str(self.facts.max_length), self.hint]

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the model's logits for one batch."""
        made = self._compiled(inputs_of(self.model, values))
        return [np.asarray(made[output]) for output in self._compiled.outputs]


def _precision_run(compiled: Any) -> str:
    """Returns what most matrix products with weights run in."""
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    run = Counter(
        fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) == "FullyConnected"
    )
    precision = run.most_common(1)[0][0]
    return _NAMES.get(precision, precision)
