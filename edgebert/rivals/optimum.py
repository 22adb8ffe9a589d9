"""optimum: the static model exported and run by optimum on ONNX Runtime, as its users do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgebert.errors import require
from edgebert.rivals._hugging_face import HuggingFaceSide, inputs_of
from edgebert.rivals._protocol import Spec
from edgebert.tasks import load_task
from edgebert.text import Values

TAKES_REFERENCE = True


class Side(HuggingFaceSide):
    """An `ORTModelForSequenceClassification`, or what the bundle's task needs, in fp32, exported when this is made.

    Raises:
        ConfigError: The reference or the provider cannot be used.
        MissingExtraError: optimum, torch or transformers is not installed.
    """

    def __init__(self, spec: Spec) -> None:
        optimum = require("optimum.onnxruntime", extra="optimum", purpose=f"bench --against {spec.side}")
        super().__init__(spec)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            auto_model = load_task(self.bundle.manifest.task).AUTO_MODEL
            ort_model = getattr(optimum, auto_model.replace("AutoModel", "ORTModel"))
            exported = ort_model.from_pretrained(
                folder, export=True, provider="CPUExecutionProvider", session_options=options
            )
            self._model = self.finish(exported, options)

    def finish(self, exported: Any, options: onnxruntime.SessionOptions) -> Any:
        """Returns the model to run, from the exported one."""
        return exported

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the model's logits for one batch."""
        outputs: tuple[NDArray[Any], ...] = self._model(**inputs_of(self._model, values)).to_tuple()
        return outputs
