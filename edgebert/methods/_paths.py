"""Paths through the layers in training: random ones, decisions that carry a gradient, and rewards.

A decision is 0 (leave the layer out) or 1 (run it), float; a path is one decision for each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_paths(rows: int, layers: int, skip_probability: float) -> Tensor:
    """Returns random paths, bool [rows, layers], none of them empty.

    Every layer is left out with the given probability; for half of the rows everything after a random layer is too.
    """
    path = torch.rand(rows, layers) >= skip_probability
    last = torch.randint(1, layers + 1, (rows, 1))
    last = torch.where(torch.rand(rows, 1) < 0.5, last, layers)
    path &= torch.arange(layers) < last
    empty = ~path.any(dim=1)
    path[empty, torch.randint(0, layers, (int(empty.sum()),))] = True
    return path


def threshold(logits: Tensor) -> Tensor:
    """Returns the decisions of the run-time rule at `delta` 0.5, without a gradient; any shape."""
    return (torch.sigmoid(logits) >= 0.5).to(logits.dtype)


def sample(logits: Tensor) -> Tensor:
    """Returns random decisions with the logits' probabilities, without a gradient; any shape."""
    return torch.bernoulli(torch.sigmoid(logits.detach()))


def straight_through(logits: Tensor, temperature: float) -> Tensor:
    """Returns the decisions on logits with logistic noise; the gradient is that of a sigmoid; any shape."""
    uniform = torch.rand_like(logits).clamp(1.0e-6, 1 - 1.0e-6)
    soft = torch.sigmoid((logits + uniform.log() - (-uniform).log1p()) / temperature)
    return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())  # bracketed, so that the value is exactly 0 or 1


def not_empty(paths: Tensor, logits: Tensor) -> Tensor:
    """Returns the paths, every empty one with its likeliest layer; arguments and result float [batch, layers]."""
    empty = (paths.detach() < 0.5).all(dim=1, keepdim=True)
    return paths + empty * functional.one_hot(logits.argmax(dim=1), logits.shape[1])


def log_probability(logits: Tensor, chosen: Tensor, free: Tensor) -> Tensor:
    """Returns the log-probability of the decisions that were free, float [batch].

    Args:
        logits: Of running each layer, float [batch, layers].
        chosen: The decisions, float [batch, layers].
        free: Which of them counted, bool [batch, layers].
    """
    logarithm = -functional.binary_cross_entropy_with_logits(logits, chosen.detach(), reduction="none")
    return (logarithm * free).sum(dim=1)


def mean_entropy(logits: Tensor, free: Tensor) -> Tensor:
    """Returns the mean entropy of a decision in nats, 0 where it was not free; a scalar."""
    entropy = functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(logits), reduction="none")
    return (entropy * free).mean()


def reward(share: Tensor, is_right: Tensor, wrong_penalty: float) -> Tensor:
    """Returns 1 - share^2 for a right answer and minus the penalty for a wrong one, float [batch].

    The form of BlockDrop (Wu et al., 2018, https://arxiv.org/abs/1711.08393).

    Args:
        share: Of the layers that ran, 0 to 1, float [batch].
        is_right: bool [batch].
        wrong_penalty: 0 or more.
    """
    return torch.where(is_right, 1 - share**2, -wrong_penalty)


def reinforce_loss(log_probability: Tensor, advantage: Tensor) -> Tensor:
    """Returns a scalar whose gradient estimates minus that of the expected reward; both arguments float [batch]."""
    return -(advantage.detach() * log_probability).mean()
