"""Takes tokens out of a batch's values, and puts them back.

Drop-and-Restore of the Length-Adaptive Transformer (Kim and Cho, 2021, https://arxiv.org/abs/2010.07003): a token that
is dropped keeps the last hidden state it had, at its own place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgebert.decisions import most_received
from edgebert.text import Values

KEPT = ("token_places", "restored", "all_tokens")
"""Values that are there from the first drop to the restoring: where the tokens left stood, int64 [rows, tokens left];
the hidden states of those dropped, float [rows, tokens, hidden]; and the mask of all tokens, int64 [rows, tokens]."""


def drop(values: Values, keep: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keeps the tokens of each row that received the most; equal ones from the first on.

    Args:
        values: `received`, float [rows, tokens], says which; `attended` and `attention_mask` lose the others, whose
            `hidden` is remembered. Rows that keep fewer than the widest are padded.
        keep: How many to keep, at most as many as there are, int64 [rows].

    Returns:
        The tokens dropped: their rows, and their places in the text, int64 [dropped] each.
    """
    mask = values["attention_mask"] != 0
    if "restored" not in values:
        places = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        values.update(token_places=places, restored=np.array(values["hidden"]), all_tokens=values["attention_mask"])
    kept = most_received(np.where(mask, values["received"], -np.inf), keep)
    row, place = np.nonzero(mask & ~kept)
    gone = row, values["token_places"][row, place]
    values["restored"][gone] = values["hidden"][row, place]
    width = int(keep.max())
    left = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    every_row = np.arange(len(left))[:, None]
    values["attended"] = values["attended"][every_row, left]
    values["token_places"] = values["token_places"][every_row, left]
    values["attention_mask"] = (np.arange(width) < keep[:, None]).astype(np.int64)
    return gone


def restore(values: Values) -> None:
    """Puts `hidden` and `attention_mask` back to what they would be if nothing had been dropped but its work."""
    if "restored" not in values:
        return
    row, place = np.nonzero(values["attention_mask"])
    values["restored"][row, values["token_places"][row, place]] = values["hidden"][row, place]
    values["hidden"], values["attention_mask"] = values["restored"], values["all_tokens"]
    for name in KEPT:
        del values[name]
