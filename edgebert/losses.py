"""Losses that several methods share. Logits are float [batch, labels], labels int64 [batch] but where it says more.

Logits of spans are float [batch, tokens, 2]: of beginning and of ending an answer with each token, and padding has a
score so low that it counts for nothing. So in either form axis 1 is what is chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss of the task, averaged over rows.

    Args:
        logits: float [batch, labels], or of spans.
        labels: Label numbers, int64 [batch], for the cross-entropy; numbers, float [batch], for the squared error of
            the one output; first and last tokens, int64 [batch, 2], for the mean of both cross-entropies.
    """
    if labels.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(-1), labels.float())
    return functional.cross_entropy(logits.float(), labels)


def mean_cross_entropy(exits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Returns the cross-entropy of the labels, averaged over exits and rows."""
    return torch.stack([functional.cross_entropy(logits.float(), labels) for logits in exits]).mean()


def mean_distillation(students: Sequence[Tensor], teacher: Tensor) -> Tensor:
    """Returns KL(teacher || student), averaged over students and rows; no gradient reaches the teacher.

    A single output is a value and not a label's logit: there it is the squared difference. Of spans it is the mean of
    both ends.
    """
    if teacher.shape[-1] == 1:
        return torch.stack([functional.mse_loss(value.float(), teacher.detach().float()) for value in students]).mean()
    target = teacher.detach().float().softmax(dim=1)
    choices = target.shape[0] * target.shape[2:].numel()
    terms = [functional.kl_div(logits.float().log_softmax(dim=1), target, reduction="sum") for logits in students]
    return torch.stack(terms).mean() / choices


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Says which rows get the right label, bool [batch]; of spans, with labels int64 [batch, 2], both right ends."""
    return (logits.argmax(dim=1) == labels).reshape(len(labels), -1).all(dim=1)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Returns KL(softmax(logits) || softmax(reference)), averaged over rows; no gradient reaches the reference.

    The other direction than `mean_distillation`: nothing may be likely that is not in the reference. A single output
    is a value and not a label's logit: there it is the squared difference.
    """
    target = reference.detach().float()
    if target.shape[-1] == 1:
        return functional.mse_loss(logits.float(), target)
    own = logits.float().log_softmax(dim=1)
    divergences = (own.exp() * (own - target.log_softmax(dim=1))).sum(dim=1)
    return divergences.mean()


def probability_nll(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Returns -log p[label], averaged over rows, of probabilities, float [batch, labels]."""
    chosen = probabilities.gather(1, labels[:, None]).squeeze(1)
    return -chosen.clamp_min(1.0e-8).log().mean()


def normalised_entropy(logits: Tensor) -> Tensor:
    """Returns the entropy of softmax(logits) over its largest possible value, 0 to 1, float [batch]."""
    logarithm = logits.log_softmax(dim=-1)
    return -(logarithm.exp() * logarithm).sum(dim=-1) / math.log(logits.shape[-1])
