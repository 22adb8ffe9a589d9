"""bundle: an edgebert bundle, through `EdgeModel` as any user runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgebert.rivals._measure import Description, LayersRun
from edgebert.rivals._protocol import Case, Spec
from edgebert.runtime.graphs import Graph
from edgebert.runtime.model import EdgeModel
from edgebert.text import Encoded, Text, Values


class Side:
    """A loaded bundle with its policy."""

    def __init__(self, spec: Spec) -> None:
        self._model = EdgeModel.from_pretrained(
            spec.bundle, policy=spec.policy, threads=spec.threads, provider=spec.provider, compact=spec.compact
        )
        self._spec = spec
        self._model.set_policy(spec.policy, **spec.knobs)

    def describe(self) -> Description:
        """Returns the method and the policy in use."""
        manifest, point = self._model.manifest, self._model.policy
        return Description(
            method=manifest.method,
            policy=point.policy,
            knobs=point.knobs,
            precision=manifest.precision,
            layers=manifest.encoder.layers,
            task=self._model.task,
        )

    def choose(self, case: Case) -> None:
        """Takes on the case's policy, or goes back to the one it was loaded with."""
        if case.policy is None:
            self._model.set_policy(self._spec.policy, **self._spec.knobs)
        else:
            self._model.set_policy(case.policy, **case.knobs)

    def encode(self, texts: Sequence[Text], max_length: int | None) -> Sequence[Encoded]:
        """Returns token ids of texts."""
        return self._model.encode(texts, max_length=max_length)

    def step_graphs(self) -> Mapping[str, Sequence[Graph]]:
        """Returns the bundle's graphs; one that others were linked into has their kinds too, `layer + exit`."""
        graphs, kinds = self._model.graphs, dict[str, dict[str, None]]()
        owner = ""
        for step in self._model.manifest.program:
            owner = step.graph or owner
            part = step.part if step.part in ("attention", "feed_forward") else step.kind
            if step.graph or step.kind != "layer":
                kinds.setdefault(owner, {})[part] = None
        by_kind: dict[str, list[Graph]] = {}
        for path, parts in kinds.items():
            if path in graphs:
                by_kind.setdefault(" + ".join(parts), []).append(graphs[path])
        return by_kind

    def run_batch(self, values: Values) -> LayersRun:
        """Answers one batch as it is."""
        return self._model.forward(**values).layers_run

    def run_list(self, rows: Sequence[Encoded], batch_size: int) -> LayersRun:
        """Answers token ids in batches of like length."""
        return self._model.run_encoded(rows, batch_size=batch_size).layers_run

    def scores(self, rows: Sequence[Encoded], batch_size: int) -> NDArray[Any]:
        """Returns what the bundle answers, [rows, ...]."""
        return self._model.run_encoded(rows, batch_size=batch_size).scores
