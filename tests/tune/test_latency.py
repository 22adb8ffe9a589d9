from typing import Any

import pytest

from edgebert.candidates import Candidate
from edgebert.config import TuneConfig
from edgebert.output import Reporter
from edgebert.text import Encoded
from edgebert.tune.latency import Stopwatch, evenly


class Pretended:
    """A model whose runs take as many ms as its knob says, and once 1000; it remembers what was run."""

    def __init__(self) -> None:
        self.now, self.runs, self.knob = 0.0, [], 0.0

    def set_policy(self, name: str, *, knob: float) -> None:
        self.knob = knob

    def run_encoded(self, rows: list[Encoded], *, batch_size: int) -> None:
        assert batch_size == len(rows)
        self.runs.append((self.knob, rows[0].text, len(rows)))
        self.now += 1.0 if len(self.runs) == 5 else self.knob / 1000


def _candidate(knob: float, cost: float = 1.0) -> Candidate:
    return Candidate(policy="p", knobs={"knob": knob}, metric=1.0, mean_layers=1.0, cost_ratio=cost)


def test_stopwatch_takes_turns_and_forgives_a_hiccup() -> None:
    model: Any = Pretended()
    rows = [Encoded([1], [0], False, number) for number in (0, 1, 1, 2, 3, 4)]
    config = TuneConfig(latency_texts=3, latency_repeats=3)
    candidates = [_candidate(7.0), _candidate(2.0)]
    stopwatch = Stopwatch(model, rows, config, lambda: model.now, Reporter())

    stopwatch.take(candidates)

    assert [stopwatch.known_ms(candidate) for candidate in candidates] == [pytest.approx(7.0), pytest.approx(2.0)]
    assert stopwatch.texts == 3
    timed = model.runs[2:]
    # Three texts, evenly spaced; each setting is first as often as the other, but for one turn.
    assert [text for _, text, _ in timed] == [0] * 6 + [2] * 6 + [4] * 6
    assert [knob for knob, _, _ in timed[::2]] == [7, 2, 7, 2, 7, 2, 7, 2, 7]
    assert [knob for knob, _, _ in timed[1::2]] == [2, 7, 2, 7, 2, 7, 2, 7, 2]


def test_stopwatch_times_all_rows_of_a_text_and_nothing_twice() -> None:
    model: Any = Pretended()
    rows = [Encoded([1], [0], False, 0), Encoded([1], [0], False, 0)]
    stopwatch = Stopwatch(model, rows, TuneConfig(latency_repeats=1), lambda: model.now, Reporter())
    candidate = _candidate(3.0)

    assert str(stopwatch.known_ms(candidate)) == "nan"
    stopwatch.take([candidate])
    stopwatch.take([candidate])

    assert model.runs == [(3.0, 0, 2)] * 2


def test_evenly_keeps_the_ends() -> None:
    front = [_candidate(1.0, cost) for cost in (0.1, 0.11, 0.12, 0.13, 0.5, 0.9, 1.0)]

    assert evenly(front, 7) == list(range(7))
    assert evenly(front, 3) == [0, 4, 6]
    assert evenly(front, 2) == [0, 6]
