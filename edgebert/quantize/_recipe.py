"""What a backend is told: how to quantize one graph, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import onnx

from edgebert.text import Values

Need = Literal["ranges", "samples"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    Attributes:
        bits: Of the weights: 8 or 4.
        mode: `dynamic`, `static` or `weight-only`.
        per_channel: A scale for each output of a matrix, in place of one for all of it.
        reduce_range: Weights of 7 bits in 8, for processors that would overflow.
        block_size: Weights that share a scale where only weights are quantized.
        smooth_quant: Move what is hard to quantize from activations into weights first.
    """

    bits: int
    mode: str
    per_channel: bool = True
    reduce_range: bool = False
    block_size: int = 32
    smooth_quant: bool = False


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number a value took."""

    low: float
    high: float


@dataclass
class Calibration:
    """What was seen of one graph while texts ran through the bundle.

    Attributes:
        rows: How many rows reached the graph.
        ranges: Of values inside it, by name.
        samples: Its inputs, call by call.
    """

    rows: int = 0
    ranges: dict[str, Range] = field(default_factory=dict)
    samples: list[Values] = field(default_factory=list)


@dataclass(frozen=True)
class Goal:
    """What a backend that tunes for accuracy has to meet.

    Attributes:
        metric: Gives the metric, 0 to 1, of the bundle with the graph at hand in a given form.
        most_lost: How much of it this graph may lose, 0 to 1.
    """

    metric: Callable[[onnx.ModelProto], float]
    most_lost: float


class Backend(Protocol):
    """What a backend's file defines.

    Attributes:
        NEEDS: What calibration for `static` gives it.
        TUNES: Whether it tunes single graphs for accuracy by itself.
        SMOOTHS: Whether it has SmoothQuant.
    """

    NEEDS: Need
    TUNES: bool
    SMOOTHS: bool

    def check(self) -> None:
        """Raises MissingExtraError where something that it needs is not installed."""

    def quantize_graph(
        self, model: onnx.ModelProto, recipe: Recipe, calibration: Calibration | None, goal: Goal | None
    ) -> onnx.ModelProto | None:
        """Returns the quantized graph; None where there is nothing in it to quantize, or it cannot meet the goal."""
