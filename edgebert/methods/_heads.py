"""The head of a model that answers once: the family's own for a text, one linear map of every token for spans."""

from __future__ import annotations

from torch import Tensor, nn

from edgebert import registry
from edgebert.encoders._blocks import EncoderConfig, initialise
from edgebert.methods._program import Pool, Pooling

SPAN_RENAMES = (("qa_outputs.", "outputs."),)
"""Hugging Face's name and ours of a head of spans, the same in every family."""


class SpanHead(nn.Module):
    """The logits of beginning and of ending an answer with each token, as in Devlin et al., 2019.

    One departure, in training only: DistilBERT's has dropout, this one has none, as in the other families.
    """

    def __init__(self, shape: EncoderConfig, n_outputs: int) -> None:
        super().__init__()
        self.outputs = nn.Linear(shape.hidden_size, n_outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns logits, float [batch, tokens, outputs], of hidden states, float [batch, tokens, hidden]."""
        return self.outputs(hidden)


def new_head(shape: EncoderConfig, pool: Pool, n_outputs: int, *, per_token: bool) -> tuple[Pooling, nn.Module]:
    """Returns a pooling and a head for it, with new weights; `head_step` makes a step of both.

    Args:
        shape: The encoder's.
        pool: What the head reads of the hidden states; not used for spans, whose head reads all of them.
        n_outputs: How many labels there are, or outputs of a token.
        per_token: Whether every token has scores.
    """
    pooling = Pooling("none" if per_token else pool, shape.hidden_size)
    family = registry.load("edgebert.encoders", shape.family)
    head = SpanHead(shape, n_outputs) if per_token else family.ClassificationHead(shape, n_outputs)
    initialise(pooling)
    initialise(head)
    return pooling, head
