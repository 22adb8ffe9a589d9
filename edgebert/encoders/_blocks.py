"""The parts that BERT-like encoders are made of, and the encoder itself.

Post-norm transformer layers (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762) as BERT uses them (Devlin et
al., 2019, https://arxiv.org/abs/1810.04805). A family's file says how its checkpoint's names and settings map here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder.

    Attributes:
        family: Name of a file in `edgebert/encoders`.
        layers: Number of transformer layers N.
        hidden_size: Width d of a hidden state.
        heads: Attention heads in a layer.
        feed_forward_size: Width f of the feed-forward part.
        vocabulary_size: Number of token ids.
        max_positions: Longest input in tokens.
        token_types: Number of segment ids; 0 for a family without segments. With 0 or 1 they make no difference and
            are not read.
        activation: Name in `ACTIVATIONS`.
        norm_epsilon: Added to the variance in layer norms.
        hidden_dropout: Dropout of hidden states in training, 0 to 1.
        attention_dropout: Dropout of attention probabilities in training, 0 to 1.
        classifier_dropout: Dropout in the family's own classification head, 0 to 1; None takes `hidden_dropout`.
        pad_token_id: Token id of padding.
        positions_skip_padding: Positions count the ids that are not padding, the first being `pad_token_id` + 1, as in
            RoBERTa; else the places in the input, from 0.
        embedding_size: Width of the embeddings, which a linear map then widens; None: they are `hidden_size` wide and
            there is no map.
        shared_layers: How many consecutive layers share one set of weights; 1: none do.
    """

    family: str
    layers: int
    hidden_size: int
    heads: int
    feed_forward_size: int
    vocabulary_size: int
    max_positions: int = 512
    token_types: int = 2
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    pad_token_id: int = 0
    positions_skip_padding: bool = False
    embedding_size: int | None = None
    shared_layers: int = 1

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the encoder reads, in the order of its arguments."""
        return ("input_ids", "attention_mask", "token_type_ids")[: 3 if self.token_types > 1 else 2]

    @property
    def head_dropout(self) -> float:
        """Dropout in the family's own classification head, 0 to 1."""
        return self.hidden_dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def different_layers(self) -> int:
        """How many sets of layer weights there are."""
        return -(-self.layers // self.shared_layers)

    def own_layer(self, index: int) -> int:
        """Returns which of the different layers is the one at a place, both counted from 0."""
        return index // self.shared_layers


class Embeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised, and widened where the layers are wider."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.skipped_id = config.pad_token_id if config.positions_skip_padding else None
        offset = 0 if self.skipped_id is None else self.skipped_id + 1
        self.word = nn.Embedding(config.vocabulary_size, width, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(offset + config.max_positions, width, padding_idx=self.skipped_id)
        self.token_type = nn.Embedding(config.token_types, width) if config.token_types else None
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.widen = nn.Linear(width, config.hidden_size) if config.embedding_size else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden], of ids and segments, int64 [batch, tokens].

        Args:
            input_ids: Token ids.
            token_type_ids: Segment ids; None means all 0. A model with one segment or none does not read them.
        """
        summed = self.word(input_ids)
        if self.token_type is not None:
            only_first = token_type_ids is None or self.token_type.num_embeddings == 1
            summed = summed + (self.token_type.weight[0] if only_first else self.token_type(token_type_ids))
        embedded = self.dropout(self.norm(summed + self.position(self._positions(input_ids))))
        return embedded if self.widen is None else self.widen(embedded)

    def _positions(self, input_ids: Tensor) -> Tensor:
        if self.skipped_id is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device)
        is_token = (input_ids != self.skipped_id).long()
        return is_token.cumsum(dim=1) * is_token + self.skipped_id


class Attention(nn.Module):
    """Multi-head self-attention with its residual connection and norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.attention_dropout = config.attention_dropout

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden]; padded keys get no attention.

        Args:
            hidden: Hidden states, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
        """
        return self.finish(self.context(hidden, attention_mask), hidden)

    def context(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns what each head gives, float [batch, heads, tokens, hidden / heads]; for the rest see `forward`."""
        batch, tokens, width = hidden.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        # ONNX Runtime's CPU Attention wants the mask at its full [batch, 1, queries, keys].
        visible = attention_mask.to(torch.bool)[:, None, None, :].expand(batch, 1, tokens, tokens)
        return functional.scaled_dot_product_attention(
            split(self.query(hidden)),
            split(self.key(hidden)),
            split(self.value(hidden)),
            attn_mask=visible,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )

    def finish(self, context: Tensor, hidden: Tensor) -> Tensor:
        """Returns hidden states of what the heads gave and of the part's own input, float [batch, tokens, hidden]."""
        joined = context.transpose(1, 2).reshape(hidden.shape)
        return self.norm(self.dropout(self.output(joined)) + hidden)


class FeedForward(nn.Module):
    """The position-wise feed-forward part with its residual connection and norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.feed_forward_size)
        self.contract = nn.Linear(config.feed_forward_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden]."""
        return self.finish(self.activation(self.expand(hidden)), hidden)

    def finish(self, inner: Tensor, hidden: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden], of what the neurons give and of the part's own input.

        Args:
            inner: After the activation, float [batch, tokens, feed_forward].
            hidden: Hidden states, float [batch, tokens, hidden].
        """
        return self.norm(self.dropout(self.contract(inner)) + hidden)


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden]; `attention_mask` is int64 [batch, tokens]."""
        return self.feed_forward(self.attention(hidden, attention_mask))


class Layers(nn.Module):
    """N layers in order. Where layers share weights, one module stands at several places and is stored once."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._own = [config.own_layer(index) for index in range(config.layers)]
        for number in range(config.different_layers):
            self.add_module(str(number), Layer(config))

    def __len__(self) -> int:
        return len(self._own)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...

    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Layer]:
        return (self.get_submodule(str(number)) for number in self._own)


class Encoder(nn.Module):
    """Embeddings and layers, without any head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = Layers(config)

    def first(self, layers: int) -> Encoder:
        """Returns an encoder of the first layers only; its weights are copies.

        Raises:
            ConfigError: It would end inside a group of layers that share weights, and not the first such group.
        """
        shared = self.config.shared_layers
        if layers > shared and layers % shared:
            raise ConfigError(f"the first {layers} layers: expected a multiple of {shared}, which share their weights.")
        shorter = Encoder(replace(self.config, layers=layers, shared_layers=min(shared, layers)))
        shorter.load_state_dict(
            {name: value for name, value in self.state_dict().items() if name in shorter.state_dict()}
        )
        return shorter

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns x_0, float [batch, tokens, hidden], of ids and segments, int64 [batch, tokens]; None means all 0."""
        return self.embeddings(input_ids, token_type_ids)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        """Returns the hidden states x_0 (embeddings) to x_N, each float [batch, tokens, hidden].

        Args:
            input_ids: Token ids, int64 [batch, tokens].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
            token_type_ids: Segment ids, int64 [batch, tokens]; None means all 0. A model with one segment or none
                does not read them.
        """
        states = [self.embed(input_ids, token_type_ids)]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask))
        return states


def initialise(module: nn.Module, *, standard_deviation: float = 0.02) -> None:
    """Draws new weights as BERT does: normal weights, zero biases, unit norms, a zero padding vector."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=standard_deviation)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
