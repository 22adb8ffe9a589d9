"""torch: the static model in PyTorch, eager, as `transformers` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgebert.errors import require
from edgebert.rivals._hugging_face import HuggingFaceSide, inputs_of
from edgebert.rivals._protocol import Spec
from edgebert.text import Values

TAKES_REFERENCE = True


class Side(HuggingFaceSide):
    """A model of `transformers`."""

    form = "eager"

    def __init__(self, spec: Spec) -> None:
        self._torch = require("torch", extra="train", purpose=f"bench --against {spec.side}")
        self._torch.set_num_threads(spec.threads)
        self._torch.set_num_interop_threads(1)
        super().__init__(spec)
        self._forward = self.finish(self.model)

    def write_model(self, folder: Path) -> list[str]:
        """Writes the checkpoint."""
        self.model.save_pretrained(folder)
        self.write_tokenizer(folder)
        return ["torch", self.form]

    def finish(self, model: Any) -> Any:
        """Returns what is called, from the model."""
        return model

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the model's logits for one batch."""
        with self._torch.inference_mode():
            inputs = {name: self._torch.from_numpy(value) for name, value in inputs_of(self.model, values).items()}
            return [output.numpy() for output in self._forward(**inputs).to_tuple()]
