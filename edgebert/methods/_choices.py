"""Choices of pieces in training: exactly the k best of n, with a gradient for the scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Surrogate = Literal["sigmoid", "identity"]


def best(scores: Tensor, counts: Tensor) -> Tensor:
    """Returns 1 for the pieces of each row that score highest, else 0; of equal ones the first is taken.

    Args:
        scores: Float [batch, pieces].
        counts: How many to take, int64 [batch].
    """
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(scores).scatter(1, order, taken.to(scores.dtype))


def soft(scores: Tensor, surrogate: Surrogate) -> Tensor:
    """Returns what lends a choice its gradient, float [batch, pieces].

    Args:
        scores: Float [batch, pieces].
        surrogate: `identity` is the scores themselves; `sigmoid` that of the scores with each row's mean taken off and
            divided by its standard deviation.
    """
    if surrogate == "identity":
        return scores
    centred = scores - scores.mean(dim=1, keepdim=True)
    deviation = (centred**2).mean(dim=1, keepdim=True).add(1.0e-12).sqrt()
    return torch.sigmoid(centred / deviation)


def straight_through(scores: Tensor, counts: Tensor, surrogate: Surrogate, noise: float = 0.0) -> Tensor:
    """Returns the best pieces of each row, exactly 0 or 1, with the gradient of the surrogate; float [batch, pieces].

    Args:
        scores: Float [batch, pieces].
        counts: How many to take, int64 [batch].
        surrogate: Where the gradient comes from.
        noise: Scale of the Gumbel noise added to the scores before the choice.
    """
    if noise:
        scores = scores - noise * torch.empty_like(scores).exponential_().log()
    carrier = soft(scores, surrogate)
    return best(scores, counts) + (carrier - carrier.detach())


def shared_out(values: Tensor, rows: int) -> Tensor:
    """Deals values out to rows at random, each as often as the others as far as it goes; [rows]."""
    dealt = values[torch.randperm(len(values))].repeat(-(-rows // len(values)))[:rows]
    return dealt[torch.randperm(rows)]
