"""torch: the static model in PyTorch, eager, as `transformers` runs it."""

from __future__ import annotations

from edgebert.errors import require
from edgebert.rivals._hugging_face import inputs_of, open_model
from edgebert.rivals._measure import LayersRun
from edgebert.rivals._protocol import Spec
from edgebert.rivals._static import StaticSide
from edgebert.text import Values


class Side(StaticSide):
    """A model of `transformers`.

    Raises:
        ConfigError: The reference or the provider cannot be used.
        MissingExtraError: torch or transformers is not installed.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._torch = require("torch", extra="train", purpose="bench --against torch")
        self._torch.set_num_threads(spec.threads)
        self._torch.set_num_interop_threads(1)
        self._model = open_model(spec, self.bundle.manifest)
        self.layers = self._model.config.num_hidden_layers

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""
        with self._torch.inference_mode():
            inputs = {name: self._torch.from_numpy(value) for name, value in inputs_of(self._model, values).items()}
            self._model(**inputs)[0].numpy()
        return None
