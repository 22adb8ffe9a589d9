"""The parts that BERT-like encoders are made of, and the encoder itself.

Post-norm transformer layers (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762) as BERT uses them (Devlin et
al., 2019, https://arxiv.org/abs/1810.04805). A family's file says how its checkpoint's names and settings map here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        token_types: Number of segment ids.
        activation: Name in `ACTIVATIONS`.
        norm_epsilon: Added to the variance in layer norms.
        hidden_dropout: Dropout of hidden states in training, 0 to 1.
        attention_dropout: Dropout of attention probabilities in training, 0 to 1.
        pad_token_id: Token id of padding.
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
    pad_token_id: int = 0


class Embeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.token_types, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden], of ids and segments, int64 [batch, tokens]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed = self.word(input_ids) + self.token_type(token_type_ids) + self.position(positions)
        return self.dropout(self.norm(summed))


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
        batch, tokens, width = hidden.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        # ONNX Runtime's CPU Attention wants the mask at its full [batch, 1, queries, keys].
        visible = (attention_mask != 0)[:, None, None, :].expand(batch, 1, tokens, tokens)
        context = functional.scaled_dot_product_attention(
            split(self.query(hidden)),
            split(self.key(hidden)),
            split(self.value(hidden)),
            attn_mask=visible,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        context = context.transpose(1, 2).reshape(batch, tokens, width)
        return self.norm(self.dropout(self.output(context)) + hidden)


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
        return self.norm(self.dropout(self.contract(self.activation(self.expand(hidden)))) + hidden)


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns hidden states, float [batch, tokens, hidden]; `attention_mask` is int64 [batch, tokens]."""
        return self.feed_forward(self.attention(hidden, attention_mask))


class Encoder(nn.Module):
    """Embeddings and layers, without any head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def first(self, layers: int) -> Encoder:
        """Returns an encoder of the first layers only; its weights are copies."""
        shorter = Encoder(replace(self.config, layers=layers))
        shorter.load_state_dict(
            {name: value for name, value in self.state_dict().items() if name in shorter.state_dict()}
        )
        return shorter

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns x_0, float [batch, tokens, hidden], of ids and segments, int64 [batch, tokens]; None means all 0."""
        return self.embeddings(input_ids, torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        """Returns the hidden states x_0 (embeddings) to x_N, each float [batch, tokens, hidden].

        Args:
            input_ids: Token ids, int64 [batch, tokens].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
            token_type_ids: Segment ids, int64 [batch, tokens]; None means all 0.
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
