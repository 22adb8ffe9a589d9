"""Budgets: what a point must meet, read from text, and which of the settings tried meets it best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgebert.candidates import cheapest_that_keeps
from edgebert.config import TuneConfig
from edgebert.errors import ConfigError, QualityError, suggestion
from edgebert.tune.trials import Trial


class Timed(NamedTuple):
    """A setting that was tried, with its mean wall time of a text in ms and that of full depth; nan where not timed."""

    trial: Trial
    latency_ms: float = math.nan
    full_ms: float = math.nan

    @property
    def speedup(self) -> float:
        """Wall time of full depth over that of this setting."""
        return self.full_ms / self.latency_ms


class Kind(NamedTuple):
    """A kind of budget: the figure it bounds, whether from above, which values make sense, and if it needs times."""

    figure: Callable[[Timed], float]
    is_most: bool
    low: float
    high: float
    needs_times: bool


KINDS = {
    "speedup": Kind(lambda timed: timed.speedup, False, 0.0, math.inf, True),
    "latency-ms": Kind(lambda timed: timed.latency_ms, True, 0.0, math.inf, True),
    "flops": Kind(lambda timed: timed.trial.cost_ratio, True, 0.0, math.inf, False),
    "min-metric": Kind(lambda timed: timed.trial.metric, False, -1.0, 1.0, False),
}


@dataclass(frozen=True)
class Budget:
    """What a point must meet.

    Attributes:
        text: As it was asked for, such as `speedup=2`.
        kind: One of `KINDS`.
        value: At least, or at most, this.
    """

    text: str
    kind: str
    value: float

    @property
    def point_name(self) -> str:
        """What the point is called unless told otherwise, such as `latency_ms_8`."""
        return f"{self.kind.replace('-', '_')}_{self.value:g}"

    @property
    def needs_times(self) -> bool:
        """Whether it bounds wall time."""
        return KINDS[self.kind].needs_times

    def is_met(self, timed: Timed) -> bool:
        """Says whether a setting meets it."""
        kind = KINDS[self.kind]
        figure = kind.figure(timed)
        return figure <= self.value if kind.is_most else figure >= self.value

    def choose(self, found: Sequence[Timed], metric_name: str) -> Timed:
        """Returns the setting that meets it: the best metric for a cost, the cheapest for a metric.

        Raises:
            QualityError: None meets it; names the nearest.
        """
        kind = KINDS[self.kind]
        met = [timed for timed in found if self.is_met(timed)]
        if not met:
            sign = 1 if kind.is_most else -1
            nearest = min(found, key=lambda timed: sign * kind.figure(timed))
            trial = nearest.trial
            knobs = ", ".join(f"{knob}={value}" for knob, value in trial.knobs.items()) or "no knobs"
            raise QualityError(
                f"budget {self.text}: no setting meets it; the nearest is {trial.policy} ({knobs}) with "
                f"{self.kind} {kind.figure(nearest):.4g}, {metric_name} {trial.metric:.4f} and "
                f"{trial.cost_ratio:.2f} of the cost."
            )
        if self.kind == "min-metric":
            return min(met, key=lambda timed: timed.trial.cost_ratio)
        return min(met, key=lambda timed: (-timed.trial.metric, timed.trial.cost_ratio))


def read_budget(text: str) -> Budget:
    """Reads `speedup=2`, `latency-ms=8`, `flops=0.5` or `min-metric=0.9`.

    >>> read_budget("flops=0.5").point_name
    'flops_0.5'

    Raises:
        ConfigError: It is none of them, or its number makes no sense.
    """
    name, equals, number = text.partition("=")
    kind = KINDS.get(name)
    if kind is None:
        raise ConfigError(f"budget {text}: unknown kind {name!r}.{suggestion(name, KINDS)}")
    try:
        value = float(number) if equals else math.nan
    except ValueError:
        value = math.nan
    if not (kind.low < value <= kind.high and math.isfinite(value)):
        most = f", at most {kind.high:g}" if math.isfinite(kind.high) else ""
        raise ConfigError(
            f"budget {text}: expected {name}= and a number of more than {kind.low:g}{most}, such as {name}=0.5."
        )
    return Budget(text, name, value)


def named_drops(config: TuneConfig) -> dict[str, float]:
    """Returns the points written without a budget: what each may lose of full depth's metric, in hundredths."""
    return {
        "accurate": config.accurate_drop_points,
        "balanced": config.balanced_drop_points,
        "fast": config.fast_drop_points,
    }


def within_drop(tried: Sequence[Trial], full: Trial, drop_points: float) -> Trial:
    """Returns the cheapest setting that loses at most so much of full depth's metric, in hundredths, or that."""
    return cheapest_that_keeps([full, *tried], full.metric - drop_points / 100) or full
