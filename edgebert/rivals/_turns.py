"""Sides loaded side by side, each in its own process, that are timed turn by turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgebert.bundle import Bundle
from edgebert.data import Example
from edgebert.output import Advance
from edgebert.rivals._process import SideProcess
from edgebert.rivals._protocol import Case, Prepared, Spec, Steps, Timed
from edgebert.tasks import load_task


@dataclass(frozen=True, kw_only=True)
class TimedSide:
    """A side to be timed.

    Attributes:
        label: Its name in the rows: the bundle's path as given, or the rival's name.
        rival_of: The bundle that a rival is made after; None for a bundle.
        spec: What its process loads.
        bundle: The bundle that `spec` names.
        batch: Its own batch size; None is that of the case.
        is_static: Whether it is a rival made of a static model, of a checkpoint or of random weights.
    """

    label: str
    rival_of: str | None
    spec: Spec
    bundle: Bundle
    batch: int | None = None
    is_static: bool = False


@dataclass(kw_only=True)
class Record:
    """What one side gave in one case: how it was prepared, its turns in order, and their numbers within the case.

    `steps` has the turns whose steps were timed; `metric` how good the answers are, where that was asked and is known.
    """

    side: TimedSide
    process: SideProcess
    case: Case
    prepared: Prepared
    timed: list[Timed] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    steps: list[Steps] = field(default_factory=list)
    metric_name: str | None = None
    metric: float | None = None

    def judge(self, examples: Sequence[Example]) -> None:
        """Lets the side answer the case's texts once more, untimed, and sets `metric`; random weights have none."""
        manifest = self.side.bundle.manifest
        if self.side.is_static and self.side.spec.reference is None:
            return
        task = load_task(manifest.task)
        targets = task.encode_targets(examples, manifest.labels, where=self.side.label)
        predictions = self.process.predict(self.prepared.case).predictions
        self.metric_name = task.METRIC
        self.metric = task.metric(np.array(predictions, targets.dtype), targets)

    def text_ms(self) -> NDArray[np.float64]:
        """Returns the mean wall time of a text in each repeat, in ms, float64 [repeats]."""
        per_call = np.array([float(np.mean(turn.call_ms)) for turn in self.timed])
        return per_call / self.prepared.texts_per_call

    def step_times(self) -> dict[str, Any]:
        """Returns where the time of a text goes (of a call, for random token ids), as fields of a result row.

        `steps_ms` has the mean wall time of each kind of step, and what is left as `python`; `step_calls` how many
        session calls there were. Nothing where steps were not timed, or there is no program.
        """
        if not any(turn.graph_ms for turn in self.steps):
            return {}
        texts = self.prepared.texts_per_call if self.case.texts else 1
        units = texts * sum(turn.calls for turn in self.steps)
        kinds = dict.fromkeys(kind for turn in self.steps for kind in turn.graph_ms)
        sums = {kind: sum(turn.graph_ms.get(kind, 0.0) for turn in self.steps) for kind in kinds}
        rest = sum(turn.total_ms for turn in self.steps) - sum(sums.values())
        return {
            "steps_ms": {kind: ms / units for kind, ms in {**sums, "python": rest}.items()},
            "step_calls": {kind: sum(turn.graph_calls.get(kind, 0) for turn in self.steps) / units for kind in kinds},
        }

    def footprint(self) -> dict[str, Any]:
        """Returns what running costs besides time, as fields of a result row.

        `private_mb` is the process's private memory above what its libraries take, after its last turn; None for a
        rival made of a static model, whose process still holds what it was made with (`edgebert.bench.cold` has it).
        `energy_j` is joules per text, the median of the repeats, `energy_source` where that comes from.
        """
        texts = self.prepared.texts_per_call * len(self.timed[0].call_ms)
        last = self.timed[-1]
        return {
            "private_mb": None if self.side.is_static else last.private_mb,
            "energy_j": float(np.median([turn.energy.joules for turn in self.timed])) / texts,
            "energy_source": last.energy.source,
        }


@contextlib.contextmanager
def open_sides(sides: Sequence[TimedSide], threads: int) -> Iterator[list[SideProcess]]:
    """Loads every side in a process of its own, one after the other; they end with the context."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(SideProcess(msgspec.structs.replace(side.spec, threads=threads), label=side.label))
            for side in sides
        ]


def time_together(
    sides: Sequence[tuple[TimedSide, SideProcess]], cases: Sequence[Case], repeats: int, advance: Advance
) -> list[Record]:
    """Times each side on its case. Every side has one turn a repeat, in the reverse order every other time."""
    records = [
        Record(side=side, process=process, case=case, prepared=process.prepare(case))
        for (side, process), case in zip(sides, cases, strict=True)
    ]
    turn = 0
    for repeat in range(repeats):
        for record in records if repeat % 2 == 0 else reversed(records):
            record.timed.append(record.process.time(record.prepared.case))
            record.turns.append(turn)
            turn += 1
            advance(1, record.side.label)
    return records
