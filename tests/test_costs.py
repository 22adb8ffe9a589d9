"""The published numbers, from the costs that real programs state."""

import pytest
import torch

from edgebert.bundle.manifest import EncoderFacts, Macs
from edgebert.costs import flops_fastbert, macs, macs_torchprofile
from edgebert.encoders._blocks import Encoder
from edgebert.export.shapes import SHAPES
from edgebert.methods import fastbert
from edgebert.methods._program import CompiledStep

QUALA = (315, 251, 242, 159, 142, 33)
LENGTH_ADAPTIVE = (269, 253, 252, 202, 104, 34)


def _facts(layers: int, hidden_size: int, feed_forward_size: int) -> EncoderFacts:
    return EncoderFacts(
        family="bert",
        layers=layers,
        hidden_size=hidden_size,
        heads=12,
        feed_forward_size=feed_forward_size,
        vocabulary_size=30522,
        token_types=2,
        pad_token_id=0,
        max_length=512,
    )


@pytest.fixture(scope="module")
def published_fastbert() -> list[CompiledStep]:
    """The program of FastBERT around BERT-base, three labels, without any weights."""
    with torch.device("meta"):
        return fastbert.build(Encoder(SHAPES["bert-base"]), fastbert.Config(pool="cls"), 3).steps()


def test_fastbert_prints_these_flops(published_fastbert: list[CompiledStep]) -> None:
    layers = [step.macs for step in published_fastbert if step.kind == "layer"]
    classifier = next(step.macs for step in published_fastbert if step.kind == "exit")
    label = 128 * 3

    assert flops_fastbert([classifier], 128, label_macs=label) == 41_975_808
    assert flops_fastbert(layers[:1], 128) == 1_811_939_328
    assert flops_fastbert([*layers, classifier], 128, label_macs=label) == 21_785_247_744
    assert flops_fastbert([layers[0], classifier], 128, label_macs=label) == 1_853_915_136


def test_macs_count_pairs_of_tokens_too() -> None:
    parts = [Macs(row=1, token=10, token_pair=100), Macs(token=3)]

    assert macs(parts, 4) == 1 + 10 * 4 + 100 * 16 + 3 * 4
    assert flops_fastbert(parts, 4) == 2 * (1 + 10 * 4 + 3 * 4)


@pytest.mark.parametrize(
    ("facts", "kept", "published"),
    [
        (_facts(12, 768, 3072), None, 35.33),
        (_facts(6, 768, 3072), None, 17.67),
        (_facts(6, 384, 1536), None, 4.756),
        (_facts(6, 384, 1536), QUALA, 2.545),
        (_facts(6, 384, 1536), LENGTH_ADAPTIVE, 2.484),
    ],
)
def test_torchprofile_prints_these_giga_macs(
    facts: EncoderFacts, kept: tuple[int, ...] | None, published: float
) -> None:
    assert macs_torchprofile(facts, 384, kept) / 1e9 == pytest.approx(published, abs=5e-3)


def test_conventions_agree_on_a_whole_encoder(published_fastbert: list[CompiledStep]) -> None:
    layers = [step.macs for step in published_fastbert if step.kind == "layer"]

    assert macs(layers, 100) == macs_torchprofile(_facts(12, 768, 3072), 100)
