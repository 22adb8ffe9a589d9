"""FastBERT's classifier of hidden states, which reads all tokens with an attention of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.bundle.manifest import Macs
from edgebert.encoders._blocks import EncoderConfig
from edgebert.methods._program import Pool, Pooling

WIDTH = 128
HEADS = 2


class Student(nn.Module):
    """Narrow the tokens, let them attend to each other, make one vector of them, classify it.

    Liu et al., 2020 (https://arxiv.org/abs/2004.02178), and its code: tanh Linear(d to 128), attention of 2 heads
    without residual or norm, the first token (`pool: cls`), tanh Linear(128 to 128), Linear(128 to labels). Its weights
    start as torch draws them, as in the code, which adds the classifiers after it has loaded the encoder: BERT's
    normal(0, 0.02) would shrink a signal 128 wide more than fourfold in each of these six layers.
    """

    def __init__(self, shape: EncoderConfig, pool: Pool, n_labels: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(shape.hidden_size, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.pooling = Pooling(pool, WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.label = nn.Linear(WIDTH, n_labels)
        self.attention_dropout = shape.attention_dropout

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one row."""
        return Macs(
            row=WIDTH * WIDTH + self.label_macs,
            token=self.narrow.in_features * WIDTH + 4 * WIDTH * WIDTH,
            token_pair=2 * WIDTH,
        )

    @property
    def label_macs(self) -> int:
        """The part of `macs.row` that the projection to labels takes, which FastBERT's own count leaves out."""
        return WIDTH * self.label.out_features

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits, float [batch, labels]; padding has no influence.

        Args:
            hidden: Hidden states, float [batch, tokens, hidden].
            attention_mask: 1 for a token, 0 for padding, int64 [batch, tokens].
        """
        narrow = torch.tanh(self.narrow(hidden))
        batch, tokens, _ = narrow.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)

        # ONNX Runtime's CPU Attention wants the mask at its full [batch, 1, queries, keys].
        visible = attention_mask.to(torch.bool)[:, None, None, :].expand(batch, 1, tokens, tokens)
        context = functional.scaled_dot_product_attention(
            split(self.query(narrow)),
            split(self.key(narrow)),
            split(self.value(narrow)),
            attn_mask=visible,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        attended = self.output(context.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return self.label(torch.tanh(self.dense(self.pooling(attended, attention_mask))))
