"""Runs a bundle at full depth and records what every exit, plan and head gives, on the bundle's own graphs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from edgebert.bundle.manifest import Step
from edgebert.decisions import Decision
from edgebert.output import Reporter
from edgebert.policies import ExitPosition, Outputs, Policy, State, Verdict, Wanted
from edgebert.runtime.engine import Engine
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.rows import MAX_BATCH_TOKENS
from edgebert.text import Encoded, batches, join_rows


def record_decisions(
    model: EdgeModel, encoded: Sequence[Encoded], batch_size: int, reporter: Reporter
) -> list[Decision]:
    """Records the decisions of a model whose paths do not depend on its rule.

    Args:
        model: The model.
        encoded: Token ids.
        batch_size: Most rows in a batch.
        reporter: Where progress goes.

    Returns:
        What each step gave, in the program's order and rows in theirs.
    """
    steps = [step for step in model.manifest.program if step.kind in ("plan", "exit", "head")]
    # A head answers for rows that end there; asked as an exit, it answers for all.
    program = [msgspec.structs.replace(s, kind="exit") if s.kind == "head" else s for s in model.manifest.program]
    engine = Engine(program, model.graphs)
    recorded = []
    groups = batches([len(row.ids) for row in encoded], max_rows=batch_size, max_tokens=MAX_BATCH_TOKENS)
    with reporter.track("full depth", len(encoded)) as advance:
        for places in groups:
            recorder = _Recorder(steps)
            engine.run(model.pad([encoded[place] for place in places]), recorder)
            recorded.append((places, recorder.outputs))
            advance(len(places), "")
    return [
        Decision(
            step.kind,
            step.layer,
            {
                name: join_rows([(places, outputs[number][name]) for places, outputs in recorded], len(encoded))
                for name in recorded[0][1][number]
            },
        )
        for number, step in enumerate(steps)
    ]


class _Recorder(Policy):
    """Stops nobody and keeps a copy of what each step gave."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.outputs: list[Outputs] = []

    def plan(self, outputs: Outputs, layers: int) -> Wanted:
        self._keep(outputs)
        return super().plan(outputs, layers)

    def fold(self, state: State, outputs: Outputs, position: ExitPosition) -> Verdict:
        self._keep(outputs)
        rows = len(outputs["attention_mask"])
        return Verdict(state, np.zeros(rows, np.bool_), lambda: np.zeros((rows, 1)))

    def _keep(self, outputs: Outputs) -> None:
        step = self.steps[len(self.outputs)]
        # What was linked into the graph before it has no outputs of its own: it was given them.
        names = step.outputs if step.graph is not None else step.inputs
        self.outputs.append({name: outputs[name].copy() for name in names})
