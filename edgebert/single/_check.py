"""Does a single file say what the split runtime says, one row at a time?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgebert.bundle import Bundle
from edgebert.errors import QualityError
from edgebert.runtime.model import EdgeModel
from edgebert.runtime.results import Forward
from edgebert.runtime.sessions import make_graph, make_options
from edgebert.runtime.shaken import shaken_graphs
from edgebert.verify import MARGIN, random_inputs

_DRAWS = 4
_MOST_TOKENS = 32


def check_single(
    data: bytes,
    bundle: Bundle,
    point: str,
    knobs: Mapping[str, NDArray[Any]],
    *,
    samples: int,
    tolerance: float,
    name: str,
) -> None:
    """Compares a single file with the bundle it was made of, on random rows of random lengths.

    Both are run as they are written, not as ONNX Runtime would optimise them: it fuses other operators in one graph
    than in several, and in 8 bits a sum that is off by 1e-6 can round to the next number.

    A row may be decided otherwise where the bundle itself decides otherwise once what its exits and predictors give is
    changed by 1e-5; not more than a quarter of the rows.

    Args:
        data: The file's bytes.
        bundle: The bundle.
        point: The operating point or policy it was made with.
        knobs: What its inputs get that have no default.
        samples: Rows compared.
        tolerance: Largest difference of a probability or a value, the latter relative to the largest (at least 1).
        name: What messages call the file.

    Raises:
        QualityError: A row differs that may not.
    """
    single = make_graph(data, name=name, threads=1, session_options=_as_written())
    rng = np.random.default_rng(0)
    excused = 0
    with EdgeModel(bundle, policy=point, threads=1, session_options=_as_written()) as model:
        shaken = [model.with_graphs(shaken_graphs(model.graphs, seed, MARGIN)) for seed in range(_DRAWS)]
        for number in range(samples):
            values = random_inputs(rng, 1, _MOST_TOKENS, bundle)
            expected = model.forward(**values)
            given = single.run({**values, **knobs}, single.outputs)
            got = Forward(given["logits"], given["exit_layer"], given["path"], expected.cost_ratio)
            difference = _difference(got, expected, model)
            if difference <= tolerance:
                continue
            excused += 1
            is_border = np.isinf(difference) and any(
                np.isinf(_difference(other.forward(**values), expected, model)) for other in shaken
            )
            if not is_border or excused > max(1, samples // 4):
                raise QualityError(
                    f"{name}: differs from {bundle.path} on random row {number} by {difference:.1e} "
                    f"(tolerance {tolerance:.0e}): answered after layer {got.exit_layer[0]}, not "
                    f"{expected.exit_layer[0]}; report this."
                )


def _as_written() -> onnxruntime.SessionOptions:
    options = make_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _difference(first: Forward, second: Forward, model: EdgeModel) -> float:
    """Returns the largest difference of a probability or a value; infinity where layer, path or label differ."""
    decided = [(forward.exit_layer, forward.path, forward.logits.argmax(axis=1)) for forward in (first, second)]
    if any(not np.array_equal(one, other) for one, other in zip(*decided, strict=True)):
        return float("inf")
    one, other = (model.task.values(forward.logits) for forward in (first, second))
    unit = 1.0 if model.task.HAS_PROBABILITIES else max(1.0, float(np.abs(other).max()))
    return float(np.abs(one - other).max() / unit)
