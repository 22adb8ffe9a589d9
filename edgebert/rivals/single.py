"""single: the bundle's own `onnx/single.onnx`, the same program as one graph in one session of the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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

TAKES_REFERENCE = False


class Side(StaticSide):
    """The single file, which takes one row at a time, at the operating point `default`.

    Raises:
        ConfigError: The bundle has none, or another operating point is asked for.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        if spec.policy != "default" or spec.knobs:
            raise ConfigError("--against single: holds the operating point default; leave --policy and --set out.")
        if not self.bundle.has(SINGLE_NAME):
            raise ConfigError(
                f"{spec.bundle}: has no {SINGLE_NAME}; make a bundle that has it: "
                f"edgebert export {spec.bundle} OUT --layout both"
            )
        self.precision = self.bundle.manifest.precision
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
            task=self._task,
        )

    def write_model(self, folder: Path) -> list[str]:
        """Writes the file as it is."""
        (folder / "model.onnx").write_bytes(self.bundle.read(SINGLE_NAME))
        return ["onnxruntime", str(self.facts.max_length)]

    def answer(self, values: Values) -> Sequence[NDArray[Any]]:
        """Returns the logits of a batch."""
        return [self._run(values)[0]]

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""
        return self._run(values)[1]

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids, one row after the other, without padding."""
        return np.concatenate([self._run(self.pad([row]))[1] for row in rows])

    def _run(self, values: Values) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the logits of the rows, run one after the other, and how many layers ran on each."""
        rows = range(len(values["input_ids"]))
        singles = ({name: value[row : row + 1] for name, value in values.items()} for row in rows)
        made = [self._graph.run(single, self._graph.outputs) for single in singles]
        logits, paths = (np.concatenate([row[name] for row in made]) for name in ("logits", "path"))
        return logits, paths.sum(axis=1)
