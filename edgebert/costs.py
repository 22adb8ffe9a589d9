"""What an input costs, by the conventions behind published numbers: papers disagree on what counts.

Result rows have `gmacs` (`macs`) and `gflops_fastbert` (the same without products of tokens with tokens, doubled;
projections to labels included).

Everything here counts one row of `tokens` tokens, padding not included. Embeddings, norms, activations and pooling
count nothing in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgebert.bundle.manifest import EncoderFacts, Macs


def macs(parts: Iterable[Macs], tokens: int) -> int:
    """Returns all multiply-accumulates of some steps, those between pairs of tokens included: edgebert's own count."""
    return sum(part.row + part.token * tokens + part.token_pair * tokens**2 for part in parts)


def flops_fastbert(parts: Iterable[Macs], tokens: int, *, label_macs: int = 0) -> int:
    """Returns the FLOPs of some steps as FastBERT counts them: two for each multiply-accumulate of a linear layer.

    Liu et al., 2020 (https://arxiv.org/abs/2004.02178), and the numbers its code prints.

    Args:
        parts: The steps that ran on the row.
        tokens: Its length.
        label_macs: Multiply-accumulates of projections to labels among the parts, which are left out there.
    """
    return 2 * (sum(part.row + part.token * tokens for part in parts) - label_macs)


def macs_torchprofile(encoder: EncoderFacts, tokens: int, kept: Sequence[int] | None = None) -> int:
    """Returns the multiply-accumulates of the layers, those between pairs of tokens included.

    As Length-Adaptive Transformer (Kim and Cho, 2021, https://arxiv.org/abs/2010.07003) and Dynamic-TinyBERT (Guskin
    et al., 2021, https://arxiv.org/abs/2111.09645) count, which print it as "GFLOPs".

    Args:
        encoder: The encoder's shape.
        tokens: The row's length.
        kept: For each layer, how many tokens its attention passes on; None means all.
    """
    width, expanded = encoder.hidden_size, encoder.feed_forward_size
    total = 0
    for left in [tokens] * encoder.layers if kept is None else kept:
        total += 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * left * width * expanded
        tokens = left
    return total
