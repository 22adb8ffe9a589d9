"""What ran on the first rows of an evaluation: their layers, the pieces of layers, and how far each token went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgebert.runtime.outcome import Outcome
from edgebert.runtime.program import Program
from edgebert.text import Encoded


def maps_of(outcomes: Sequence[Outcome], encoded: Sequence[Encoded], model: Program, rows: int) -> dict[str, Any]:
    """Returns what ran as plain data, small enough to travel in a result.

    Args:
        outcomes: What the engine did, in the order of the rows.
        encoded: The rows.
        model: The model that ran them.
        rows: How many of the first rows to tell of.

    Returns:
        `paths`: a text for each of the rows, with a 1 for every layer that ran on it and a 0 for every other.
        `keep_rates`: for each kind of piece (`head`, `block`) the share of all rows that ran it, [layers][pieces];
        nothing where pieces are not chosen. `tokens`: for each of the rows its tokens, each as [text, number of layers
        it went through]; nothing where tokens cannot be dropped.
    """
    maps: dict[str, Any] = {"paths": [_digits(path) for outcome in outcomes for path in outcome.path][:rows]}
    names = {name for outcome in outcomes for name in outcome.chosen}
    if names:
        maps["keep_rates"] = {
            name.removesuffix("_choice"): np.concatenate([outcome.chosen[name] for outcome in outcomes])
            .mean(axis=0)
            .round(3)
            .tolist()
            for name in sorted(names)
        }
    counts = [row for outcome in outcomes if outcome.token_layers is not None for row in outcome.token_layers]
    if counts:
        maps["tokens"] = [
            list(map(list, zip(model.tokens(row), count[: len(row.ids)].tolist(), strict=True)))
            for row, count in zip(encoded[:rows], counts[:rows], strict=True)
        ]
    return maps


def _digits(path: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    return "".join("1" if ran else "0" for ran in path)
