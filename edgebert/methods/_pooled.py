"""BERT's pooler and a linear classifier as an exit, the pooler shared between exits or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgebert.bundle.manifest import Macs
from edgebert.encoders._blocks import EncoderConfig, initialise
from edgebert.methods._program import Pool, Pooling


class Pooler(nn.Module):
    """One vector per row from its tokens, then Linear(d to d) and tanh."""

    def __init__(self, shape: EncoderConfig, pool: Pool) -> None:
        super().__init__()
        self.pooling = Pooling(pool, shape.hidden_size)
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)
        initialise(self)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns float [batch, hidden] of hidden states, float [batch, tokens, hidden], and their mask."""
        return torch.tanh(self.dense(self.pooling(hidden, attention_mask)))


class Classifier(nn.Module):
    """Dropout and Linear(d to labels)."""

    def __init__(self, shape: EncoderConfig, n_labels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(shape.hidden_dropout)
        self.label = nn.Linear(shape.hidden_size, n_labels)
        initialise(self)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of vectors, float [batch, hidden]."""
        return self.label(self.dropout(pooled))


class PooledExit(nn.Module):
    """A pooler and a classifier as one exit; either may belong to other exits too."""

    def __init__(self, pooler: Pooler, classifier: Classifier) -> None:
        super().__init__()
        self.pooler = pooler
        self.classifier = classifier

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits, float [batch, labels], of hidden states, float [batch, tokens, hidden], and their mask."""
        return self.classifier(self.pooler(hidden, attention_mask))


def pooled_macs(shape: EncoderConfig, n_labels: int) -> Macs:
    """Returns the multiply-accumulates of one exit on one row."""
    return Macs(row=shape.hidden_size * (shape.hidden_size + n_labels))
