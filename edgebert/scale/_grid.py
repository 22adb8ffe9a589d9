"""Times calls of different depth or width, length and batch size, all of them taking turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle.manifest import Manifest
from edgebert.output import Reporter
from edgebert.runtime.model import EdgeModel

_WIDTHS = (0.25, 0.5, 0.75, 1.0)
_MOST_DEPTHS = 4
_TURN_MS = 30.0
_MOST_CALLS = 20


@dataclass(frozen=True, kw_only=True)
class Point:
    """A kind of call.

    Attributes:
        policy: The policy it ran under.
        knobs: Its knobs.
        layers: Layers that ran on every row.
        length: Tokens of each row.
        batch: Rows of the call.
        macs: Multiply-accumulates of the call, predictors and exits included.
        mean_ms: Wall time of the call: the median over the repeats.
        min_ms: Its smallest repeat.
        max_ms: Its largest.
    """

    policy: str
    knobs: dict[str, Any]
    layers: float
    length: int
    batch: int
    macs: float
    mean_ms: float
    min_ms: float
    max_ms: float

    def row(self) -> dict[str, Any]:
        """Returns the point as plain data, with `row_ms` and `gmacs_per_row`."""
        return {**asdict(self), "row_ms": self.mean_ms / self.batch, "gmacs_per_row": self.macs / self.batch / 1e9}


def time_grid(
    model: EdgeModel, lengths: Sequence[int], batches: Sequence[int], repeats: int, reporter: Reporter
) -> list[Point]:
    """Times random token ids at every setting, length and batch size; leaves the model's policy changed."""
    settings = settings_of(model.manifest)
    kinds = [_Kind(model, *setting, length, batch) for setting in settings for length in lengths for batch in batches]
    with reporter.track("grid", repeats * len(kinds)) as advance:
        for repeat in range(repeats):
            for kind in kinds if repeat % 2 == 0 else reversed(kinds):
                kind.time()
                advance(1, f"{kind.length} tokens, batch {kind.batch}")
    return [kind.point() for kind in kinds]


def settings_of(manifest: Manifest) -> list[tuple[str, dict[str, Any]]]:
    """Returns policies and knobs that change how much of the model runs: depths, or widths, or all of it."""
    if "fixed" in manifest.policies:
        depths = list(manifest.exit_layers)
        places = np.linspace(0, len(depths) - 1, min(len(depths), _MOST_DEPTHS)).round().astype(int)
        return [("fixed", {"layer": depths[place]}) for place in places]
    if "width" in manifest.policies:
        return [("width", {"width": width}) for width in _WIDTHS]
    return [("never", {})]


class _Kind:
    """A kind of call, and what its repeats took."""

    def __init__(self, model: EdgeModel, policy: str, knobs: dict[str, Any], length: int, batch: int) -> None:
        self.length, self.batch = length, batch
        self._model, self._policy, self._knobs = model, policy, knobs
        size = model.manifest.encoder.vocabulary_size
        self._ids: NDArray[np.int64] = np.random.default_rng(0).integers(0, size, (batch, length), np.int64)
        self._repeats_ms: list[float] = []
        self._call()
        self._calls = int(np.clip(_TURN_MS / max(self._call(), 1e-3), 1, _MOST_CALLS))

    def time(self) -> None:
        """Adds a repeat, after a call that is not timed."""
        self._call()
        self._repeats_ms.append(float(np.median([self._call() for _ in range(self._calls)])))

    def point(self) -> Point:
        """Returns what came of it."""
        return Point(
            policy=self._policy,
            knobs=self._knobs,
            layers=self._layers,
            length=self.length,
            batch=self.batch,
            macs=self._macs,
            mean_ms=float(np.median(self._repeats_ms)),
            min_ms=min(self._repeats_ms),
            max_ms=max(self._repeats_ms),
        )

    def _call(self) -> float:
        self._model.set_policy(self._policy, **self._knobs)
        start = time.perf_counter()
        made = self._model.forward(self._ids)
        call_ms = (time.perf_counter() - start) * 1000.0
        self._layers = float(made.path.sum(axis=1).mean())
        self._macs = float((made.cost_ratio * self._model.full_macs([self.length] * self.batch)).sum())
        return call_ms
