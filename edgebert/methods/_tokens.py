"""Drop-and-Restore in torch: attention that says what every token received, and layers that go on with fewer tokens.

The Length-Adaptive Transformer (Kim and Cho, 2021, https://arxiv.org/abs/2010.07003). A token that is dropped between
a layer's attention and its feed-forward part keeps the last hidden state it had, at its own place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.encoders._blocks import Attention, Layer


class ReceivedAttention(nn.Module):
    """The attention part of a layer, which also says how much attention every token received.

    Args:
        attention: The layer's attention.
        keep_first: Give the first token infinitely much, so that it is never dropped.
        count_padding: Let padding count among the queries, as the published code does.
    """

    def __init__(self, attention: Attention, *, keep_first: bool, count_padding: bool) -> None:
        super().__init__()
        self.attention = attention
        self.keep_first = keep_first
        self.count_padding = count_padding

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what goes on to the feed-forward part, and what each token received.

        Args:
            hidden: Hidden states, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].

        Returns:
            `attended`, float [batch, tokens, hidden], and `received`, float [batch, tokens]: attention probabilities,
            summed over heads and queries.
        """
        attended, probabilities = attend(self.attention, hidden, attention_mask)
        return attended, self._received(probabilities, attention_mask)

    @torch.no_grad()
    def received(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns `received` alone, without a gradient or dropout."""
        query, key, _ = _heads(self.attention, hidden)
        return self._received(_probabilities(query, key, attention_mask), attention_mask)

    def _received(self, probabilities: Tensor, attention_mask: Tensor) -> Tensor:
        queries = (torch.ones_like(attention_mask) if self.count_padding else attention_mask).to(probabilities.dtype)
        # A product with the row of queries was measured faster than a sum over [batch, heads, queries, keys].
        received = (queries[:, None, None, :] @ probabilities).squeeze(2).sum(dim=1)
        if not self.keep_first:
            return received
        first = torch.full_like(received[:, :1], math.inf)
        return torch.cat([first, received[:, 1:]], dim=1)


def attend(attention: Attention, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the output of a layer's attention, float [batch, tokens, hidden], and its probabilities.

    Those are float [batch, heads, queries, keys], before dropout.
    """
    query, key, value = _heads(attention, hidden)
    probabilities = _probabilities(query, key, attention_mask)
    dropped = functional.dropout(probabilities, attention.attention_dropout, attention.training)
    context = (dropped.to(value.dtype) @ value).transpose(1, 2).reshape(hidden.shape)
    return attention.norm(attention.dropout(attention.output(context)) + hidden), probabilities


def states_and_probabilities(
    layers: Iterable[Layer], hidden: Tensor, attention_mask: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the hidden states x_0 to x_N, each float [batch, tokens, hidden], and every layer's probabilities."""
    states, every = [hidden], []
    for layer in layers:
        attended, probabilities = attend(layer.attention, states[-1], attention_mask)
        states.append(layer.feed_forward(attended))
        every.append(probabilities)
    return states, every


def drop_and_restore(
    layers: Iterable[Layer],
    hidden: Tensor,
    attention_mask: Tensor,
    keep: Sequence[Tensor | None],
    *,
    keep_first: bool,
    count_padding: bool,
) -> Tensor:
    """Runs layers that drop tokens, and returns the last hidden state of every token, float [batch, tokens, hidden].

    Args:
        layers: The layers.
        hidden: The embeddings, float [batch, tokens, hidden].
        attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
        keep: For each layer, how many tokens of each row go on from it, int64 [batch], a row that has fewer keeping
            all of them; None leaves the layer out.
        keep_first: Never drop the first token.
        count_padding: Let padding count among the queries.
    """
    restored = hidden
    left = attention_mask.sum(dim=1)
    places = torch.arange(hidden.shape[1], device=hidden.device).expand(attention_mask.shape)
    for layer, count in zip(layers, keep, strict=True):
        if count is None:
            continue
        attended = layer.attention(hidden, attention_mask)
        going_on = torch.minimum(count.clamp_min(1), left)
        if (going_on < left).any():
            restored = _put(restored, hidden, attention_mask, places)
            part = ReceivedAttention(layer.attention, keep_first=keep_first, count_padding=count_padding)
            chosen, attention_mask = _most(part.received(hidden, attention_mask), attention_mask, going_on)
            attended = attended.gather(1, chosen[:, :, None].expand(-1, -1, hidden.shape[2]))
            places, left = places.gather(1, chosen), going_on
        hidden = layer.feed_forward(attended)
    return _put(restored, hidden, attention_mask, places)


def _heads(attention: Attention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = hidden.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, tokens, attention.heads, width // attention.heads).transpose(1, 2)

    return split(attention.query(hidden)), split(attention.key(hidden)), split(attention.value(hidden))


def _probabilities(query: Tensor, key: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns attention probabilities, float [batch, heads, queries, keys], 0 for padded keys.

    The mask is one more column of queries and keys, so that no sum goes over all pairs once more: at 512 tokens this
    was measured a tenth faster.
    """
    masked = (attention_mask == 0).to(key.dtype) * (torch.finfo(key.dtype).min / 2)
    query = torch.cat([query / math.sqrt(query.shape[-1]), torch.ones_like(query[..., :1])], dim=-1)
    key = torch.cat([key, masked[:, None, :, None].expand_as(key[..., :1])], dim=-1)
    return torch.softmax((query @ key.transpose(-1, -2)).float(), dim=-1)


def _most(received: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places of the tokens that received the most, ascending, and their mask, int64 [batch, widest]."""
    order = received.float().masked_fill(attention_mask == 0, -math.inf).argsort(dim=1, descending=True, stable=True)
    goes_on = torch.arange(order.shape[1], device=order.device) < keep[:, None]
    width = int(keep.max())
    # Those that stay behind sort after all places, so that they fill a row that keeps fewer than the widest.
    chosen = torch.where(goes_on, order, order + order.shape[1]).sort(dim=1).values[:, :width]
    return chosen % order.shape[1], (chosen < order.shape[1]).to(attention_mask.dtype)


def _put(restored: Tensor, hidden: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
    """Returns the states of all tokens, with those that are still there up to date."""
    index = places[:, :, None].expand_as(hidden)
    current = torch.where(attention_mask[:, :, None] != 0, hidden.to(restored.dtype), restored.gather(1, index))
    return restored.scatter(1, index, current)
