"""How deep the held-out rows went that a token occurred in: a table, looked up before the first layer."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

_SMALLEST = 1.0e-12


class TokenTable(nn.Module):
    """Exit layers per token id.

    A token's exit distribution is (its counts + smoothing * the distribution over rows) / (their sum + smoothing), so
    that a token never seen has that of all rows. Special tokens and padding count nowhere. A new table knows of one
    row that needed every layer. What was counted are buffers, which a checkpoint holds like weights.
    """

    counts: Tensor
    rows: Tensor
    ordinary: Tensor

    def __init__(self, vocabulary_size: int, layers: int, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("counts", torch.zeros(vocabulary_size, layers))
        self.register_buffer("rows", torch.eye(layers)[-1].clone())
        self.register_buffer("ordinary", torch.ones(vocabulary_size))

    def reset(self, special_ids: Collection[int]) -> None:
        """Forgets everything; the special tokens, padding among them, will not be counted."""
        self.counts.zero_()
        self.rows.zero_()
        self.ordinary.fill_(1.0)
        self.ordinary[list(special_ids)] = 0.0

    def count(self, input_ids: Tensor, attention_mask: Tensor, exit_layers: Tensor, *, once: bool = False) -> None:
        """Adds rows.

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
            exit_layers: The layer each row stops after, counted from 1, int64 [batch].
            once: Count a token that occurs several times in a row once.
        """
        is_counted = (attention_mask != 0) & (self.ordinary[input_ids] != 0)
        pairs = torch.stack([input_ids, (exit_layers - 1)[:, None].expand_as(input_ids)], dim=-1)
        if once:
            found = [torch.unique(row[real], dim=0) for row, real in zip(pairs, is_counted, strict=True)]
            pairs = torch.cat(found)
        else:
            pairs = pairs[is_counted]
        self.counts.index_put_((pairs[:, 0], pairs[:, 1]), torch.ones(len(pairs)), accumulate=True)
        self.rows += torch.bincount(exit_layers - 1, minlength=len(self.rows)).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Looks rows up.

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].

        Returns:
            The mean over a row's ordinary tokens of their exit distributions, and of their logarithms, both float
            [batch, layers]; a row without such a token gets the distribution over rows.
        """
        prior = self.rows / self.rows.sum()
        counts = self.counts[input_ids]
        shares = (counts + self.smoothing * prior) / (counts.sum(dim=-1, keepdim=True) + self.smoothing)
        weights = attention_mask.to(shares.dtype) * self.ordinary[input_ids]
        tokens = weights.sum(dim=1, keepdim=True)

        def mean(values: Tensor, otherwise: Tensor) -> Tensor:
            total = (values * weights[:, :, None]).sum(dim=1)
            return torch.where(tokens > 0, total / tokens.clamp_min(1.0), otherwise)

        return mean(shares, prior), mean(_log(shares), _log(prior))


def _log(shares: Tensor) -> Tensor:
    return shares.clamp_min(_SMALLEST).log()
