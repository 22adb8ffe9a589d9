"""whole: the bundle's own `onnx/model.onnx`, the same model as one graph in one session of the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgebert.bundle import WHOLE_MODEL_NAME
from edgebert.errors import ConfigError
from edgebert.rivals._protocol import Spec
from edgebert.rivals._static import StaticSide
from edgebert.runtime.sessions import make_graph
from edgebert.text import Values

TAKES_REFERENCE = False


class Side(StaticSide):
    """The whole model in one session.

    Raises:
        ConfigError: The bundle has no whole model.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        if not self.bundle.has(WHOLE_MODEL_NAME):
            raise ConfigError(
                f"{spec.bundle}: has no {WHOLE_MODEL_NAME}, which only a `plain` bundle has; "
                "name a plain bundle, torch or optimum to time it against."
            )
        self.precision = self.bundle.manifest.precision
        self._graph = make_graph(
            self.bundle.read(WHOLE_MODEL_NAME),
            name=f"{spec.bundle}/{WHOLE_MODEL_NAME}",
            threads=spec.threads,
            provider=spec.provider,
        )

    def write_model(self, folder: Path) -> list[str]:
        """Writes the graph as it is."""
        (folder / "model.onnx").write_bytes(self.bundle.read(WHOLE_MODEL_NAME))
        return ["onnxruntime", str(self.facts.max_length)]

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the graph's outputs."""
        made = self._graph.run(values, self._graph.outputs)
        return [made[name] for name in self._graph.outputs]
