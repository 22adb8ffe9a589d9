"""single: the bundle's own `onnx/single.onnx`, the same program as one graph in one session of the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import SINGLE_NAME
from edgebert.errors import ConfigError
from edgebert.rivals._measure import Description, LayersRun
from edgebert.rivals._protocol import Spec
from edgebert.rivals._static import StaticSide
from edgebert.runtime.sessions import make_graph
from edgebert.text import Encoded, Values


class Side(StaticSide):
    """The single file, which takes one row at a time, at the operating point `default`.

    Raises:
        ConfigError: The bundle has none, or a reference is given.
    """

    def __init__(self, spec: Spec) -> None:
        spec.refuse_reference()
        super().__init__(spec)
        if not self.bundle.has(SINGLE_NAME):
            raise ConfigError(
                f"{spec.bundle}: has no {SINGLE_NAME}; make a bundle that has it: "
                f"edgebert export {spec.bundle} OUT --layout both"
            )
        self._graph = make_graph(
            self.bundle.read(SINGLE_NAME),
            name=f"{spec.bundle}/{SINGLE_NAME}",
            threads=spec.threads,
            provider=spec.provider,
        )

    def describe(self) -> Description:
        """Returns the method and the bundle's default operating point, which the file holds."""
        manifest = self.bundle.manifest
        point = manifest.operating_points["default"]
        return Description(
            method=manifest.method,
            policy=point.policy,
            knobs=point.knobs,
            precision=manifest.precision,
            layers=self.layers,
        )

    def run_batch(self, values: Values) -> LayersRun:
        """Answers the rows of a batch, one after the other."""
        rows = len(values["input_ids"])
        return np.concatenate([self._run({n: v[row : row + 1] for n, v in values.items()}) for row in range(rows)])

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids, one row after the other."""
        return np.concatenate([self._run(self._tokenizer().pad([row])) for row in rows])

    def _run(self, values: Values) -> NDArray[Any]:
        layers: NDArray[Any] = self._graph.run(values, self._graph.outputs)["path"].sum(axis=1)
        return layers
