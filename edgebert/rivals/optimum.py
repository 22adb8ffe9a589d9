"""optimum: the static model exported and run by optimum on ONNX Runtime, as its users do."""

from __future__ import annotations

import tempfile
from typing import Any

import onnxruntime

from edgebert.errors import require
from edgebert.rivals._hugging_face import inputs_of, open_model
from edgebert.rivals._measure import LayersRun
from edgebert.rivals._protocol import Spec
from edgebert.rivals._static import StaticSide
from edgebert.tasks import load_task
from edgebert.text import Values


class Side(StaticSide):
    """An `ORTModelForSequenceClassification`, or what the bundle's task needs, in fp32, exported when this is made.

    Raises:
        ConfigError: The reference or the provider cannot be used.
        MissingExtraError: optimum, torch or transformers is not installed.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        optimum = require("optimum.onnxruntime", extra="optimum", purpose="bench --against optimum")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        model = open_model(spec, self.bundle.manifest)
        self.layers = model.config.num_hidden_layers
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            auto_model = load_task(self.bundle.manifest.task).AUTO_MODEL
            ort_model = getattr(optimum, auto_model.replace("AutoModel", "ORTModel"))
            exported = ort_model.from_pretrained(
                folder, export=True, provider="CPUExecutionProvider", session_options=options
            )
            self._model = self.finish(exported, options)

    def finish(self, exported: Any, options: onnxruntime.SessionOptions) -> Any:
        """Returns the model to run, from the exported one."""
        return exported

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""
        self._model(**inputs_of(self._model, values))
        return None
