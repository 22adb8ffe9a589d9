"""optimum: the static model exported and run by optimum on ONNX Runtime, as its users do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
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
        self.tools = require("optimum.onnxruntime", extra="optimum", purpose=f"bench --against {spec.side}")
        super().__init__(spec)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = spec.threads
        self._options.inter_op_num_threads = 1
        auto_model = load_task(self.bundle.manifest.task).AUTO_MODEL
        self._ort_model = getattr(self.tools, auto_model.replace("AutoModel", "ORTModel"))
        with tempfile.TemporaryDirectory() as folder:
            self.write_onnx(folder)
            self._model = self._open(folder)

    def export(self, folder: str) -> Any:
        """Returns the model as optimum exports it; what it needs until it is written lies in a folder."""
        self.model.save_pretrained(folder)
        return self._open(folder, export=True)

    def write_onnx(self, folder: str) -> None:
        """Writes the exported model."""
        with tempfile.TemporaryDirectory() as checkpoint:
            self.export(checkpoint).save_pretrained(folder)

    def write_model(self, folder: Path) -> list[str]:
        """Writes the exported model with its tokenizer."""
        self.write_onnx(str(folder))
        self.write_tokenizer(folder)
        return ["optimum"]

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the model's logits for one batch."""
        outputs: tuple[NDArray[Any], ...] = self._model(**inputs_of(self._model, values)).to_tuple()
        return outputs

    def _open(self, folder: str, **options: bool) -> Any:
        return self._ort_model.from_pretrained(
            folder, provider="CPUExecutionProvider", session_options=self._options, **options
        )
