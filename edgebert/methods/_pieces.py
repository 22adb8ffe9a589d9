"""A layer's two parts as sums of pieces (heads, blocks of neighbouring neurons); every row runs its own choice of them.

A part is norm(x + bias + sum of the chosen pieces of x); piece i is mix(x E_i + e_i) C_i, and `mix` is the same for all
pieces of a part: the attention of one head, or the activation. In torch every piece is computed and those not chosen
are multiplied by 0, at the place where a piece's result is final but for a linear map (so that it is right for any
activation); the graphs that are exported compute the chosen ones only.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import Attention, FeedForward


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The weights of a part, piece by piece.

    Attributes:
        expand: E, float [pieces, hidden, expanded].
        expand_bias: e, float [pieces, expanded].
        mix: From float [rows, tokens, expanded], and the mask, int64 [rows, tokens], if it `reads_mask`, to float
            [rows, tokens, mixed].
        contract: C, float [pieces, mixed, hidden].
        bias: Float [hidden].
        norm: The norm at the end.
        reads_mask: Whether tokens see each other.
    """

    expand: Tensor
    expand_bias: Tensor
    mix: nn.Module
    contract: Tensor
    bias: Tensor
    norm: nn.Module
    reads_mask: bool


class HeadMix(nn.Module):
    """The attention of one head on its own queries, keys and values, side by side."""

    def forward(self, expanded: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns float [rows, tokens, head] of float [rows, tokens, 3 * head] and the mask, int64 [rows, tokens]."""
        query, key, value = expanded.chunk(3, dim=-1)
        # Not torch's own attention: ONNX Runtime's refuses a batch of no rows.
        hidden = torch.finfo(expanded.dtype).min * (1 - attention_mask.to(expanded.dtype))[:, None, :]
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5 + hidden
        return scores.softmax(dim=-1) @ value


class BlockMix(nn.Module):
    """The activation of the feed-forward part."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.activation = feed_forward.activation

    def forward(self, expanded: Tensor) -> Tensor:
        """Returns float [rows, tokens, block], as it is given."""
        return self.activation(expanded)


class PiecewisePart(nn.Module, abc.ABC):
    """A part of a layer in pieces. Its inputs begin with what it transforms and end with the choice."""

    @abc.abstractmethod
    def pieces(self) -> Pieces:
        """Returns its weights, piece by piece."""


class AttentionPart(PiecewisePart):
    """The attention part of a layer, its heads the pieces."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor, attention_mask: Tensor, head_choice: Tensor) -> Tensor:
        """Returns what the feed-forward part reads, float [batch, tokens, hidden].

        Args:
            hidden: Hidden states, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
            head_choice: Which heads run, bool, or float of 0 and 1, [batch, heads].
        """
        attention = self.attention
        context = attention.context(hidden, attention_mask)
        return attention.finish(context * head_choice[:, :, None, None].to(context.dtype), hidden)

    def pieces(self) -> Pieces:
        """Returns the weights, head by head."""
        attention = self.attention
        heads, width = attention.heads, attention.output.in_features
        size = width // heads
        inputs = (attention.query, attention.key, attention.value)
        expand = [linear.weight.detach().view(heads, size, width) for linear in inputs]
        biases = [linear.bias.detach().view(heads, size) for linear in inputs]
        return Pieces(
            expand=torch.cat(expand, 1).transpose(1, 2),
            expand_bias=torch.cat(biases, 1),
            mix=HeadMix(),
            contract=attention.output.weight.detach().T.reshape(heads, size, width),
            bias=attention.output.bias.detach(),
            norm=attention.norm,
            reads_mask=True,
        )


class FeedForwardPart(PiecewisePart):
    """The feed-forward part of a layer, blocks of neighbouring neurons the pieces."""

    def __init__(self, feed_forward: FeedForward, block_size: int) -> None:
        super().__init__()
        self.feed_forward = feed_forward
        self.block_size = block_size

    def forward(self, attended: Tensor, block_choice: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden].

        Args:
            attended: What the attention part gave, float [batch, tokens, hidden].
            block_choice: Which blocks run, bool, or float of 0 and 1, [batch, blocks].
        """
        part = self.feed_forward
        inner = part.activation(part.expand(attended))
        chosen = block_choice.to(inner.dtype)[:, :, None].expand(-1, -1, self.block_size).flatten(1)[:, None, :]
        return part.finish(inner * chosen, attended)

    def pieces(self) -> Pieces:
        """Returns the weights, block by block."""
        part = self.feed_forward
        neurons, width = part.expand.weight.shape
        blocks = neurons // self.block_size
        return Pieces(
            expand=part.expand.weight.detach().view(blocks, self.block_size, width).transpose(1, 2),
            expand_bias=part.expand.bias.detach().view(blocks, self.block_size),
            mix=BlockMix(part),
            contract=part.contract.weight.detach().T.reshape(blocks, self.block_size, width),
            bias=part.contract.bias.detach(),
            norm=part.norm,
            reads_mask=False,
        )
