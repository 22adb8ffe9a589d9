"""Times settings of one loaded bundle against each other: text by text, each alone in its batch, taking turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from edgebert.candidates import Candidate
from edgebert.config import TuneConfig
from edgebert.data import spread
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel
from edgebert.text import Encoded

Clock = Callable[[], float]
"""Returns seconds, from any start."""


class Stopwatch:
    """Times settings of one model and remembers the last times of each.

    Attributes:
        texts: How many texts it times.
    """

    def __init__(
        self, model: EdgeModel, encoded: Sequence[Encoded], config: TuneConfig, clock: Clock, reporter: Reporter
    ) -> None:
        """Picks the texts, evenly spaced among all.

        Args:
            model: The model; its policy is changed.
            encoded: The rows of all texts, a text's together.
            config: How many texts to time, and how often.
            clock: Tells the time.
            reporter: Where progress goes.
        """
        self.model, self.repeats, self.clock, self.reporter = model, config.latency_repeats, clock, reporter
        rows = [list(group) for _, group in groupby(encoded, key=lambda row: row.text)]
        self._rows = spread(rows, config.latency_texts)
        self._known: dict[int, float] = {}

    @property
    def texts(self) -> int:
        """How many texts it times."""
        return len(self._rows)

    def known_ms(self, candidate: Candidate) -> float:
        """Returns a setting's mean wall time of a text, in ms; nan where it was not timed."""
        return self._known.get(id(candidate), math.nan)

    def take(self, candidates: Sequence[Candidate]) -> None:
        """Times settings against each other, unless all of them have been; tokenizing is left out.

        For every text all settings run one after the other, each time another one first, and of the repeats the
        median counts, so that what else the machine does falls on all of them alike.
        """
        if all(id(candidate) in self._known for candidate in candidates):
            return
        seconds = np.zeros((len(self._rows), self.repeats, len(candidates)))
        for candidate in candidates:
            self._run(candidate, self._rows[0])
        with self.reporter.track("times", len(self._rows)) as advance:
            for number, text in enumerate(self._rows):
                for repeat in range(self.repeats):
                    for turn in range(len(candidates)):
                        index = (turn + number + repeat) % len(candidates)
                        seconds[number, repeat, index] = self._run(candidates[index], text)
                advance(1, "")
        means = np.median(seconds, axis=1).mean(axis=0) * 1000
        self._known.update((id(candidate), float(ms)) for candidate, ms in zip(candidates, means, strict=True))

    def _run(self, candidate: Candidate, text: Sequence[Encoded]) -> float:
        self.model.set_policy(candidate.policy, **candidate.knobs)
        start = self.clock()
        self.model.run_encoded(text, batch_size=len(text))  # the windows of a passage together, as when it is asked
        return self.clock() - start


def evenly(front: Sequence[Candidate], most: int) -> list[int]:
    """Returns the places of at most so many settings, evenly spaced in cost; the cheapest and the dearest are there.

    Args:
        front: Settings, the cheapest first.
        most: How many, at least 2.
    """
    if len(front) <= most:
        return list(range(len(front)))
    costs = np.array([candidate.cost_ratio for candidate in front])
    wanted = np.linspace(costs[0], costs[-1], most)
    return sorted({int(np.abs(costs - cost).argmin()) for cost in wanted})
