import pytest
import torch

from edgebert import registry
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.errors import ConfigError
from edgebert.export.shapes import SHAPES, random_encoder


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "feed_forward", "vocabulary"),
    [
        ("bert-base", 12, 768, 12, 3072, 30522),
        ("minilm-l6", 6, 384, 12, 1536, 30522),
        ("roberta-base", 12, 768, 12, 3072, 50265),
        ("distilbert", 6, 768, 12, 3072, 30522),
        ("albert-base", 12, 768, 12, 3072, 30000),
        ("electra-small", 12, 256, 4, 1024, 30522),
    ],
)
def test_shapes_are_the_published_ones(
    name: str, layers: int, width: int, heads: int, feed_forward: int, vocabulary: int
) -> None:
    shape = SHAPES[name]

    assert (shape.layers, shape.hidden_size, shape.heads) == (layers, width, heads)
    assert (shape.feed_forward_size, shape.vocabulary_size, shape.max_positions) == (feed_forward, vocabulary, 512)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bert-base", 108_891_648),
        ("roberta-base", 124_055_040),
        ("distilbert", 66_362_880),
        ("albert-base", 11_092_992),
        ("electra-small", 13_483_008),
    ],
)
def test_shapes_have_the_published_sizes(name: str, parameters: int) -> None:
    """The published models' own parameters, without a pooler."""
    with torch.device("meta"):
        encoder = Encoder(SHAPES[name])

    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_are_their_familys(name: str) -> None:
    family = registry.load("edgebert.encoders", SHAPES[name].family)

    assert family.read_config(family.write_config(SHAPES[name]), where="x") == SHAPES[name]


def test_random_encoder_weights(monkeypatch: pytest.MonkeyPatch, tiny_encoder_config: EncoderConfig) -> None:
    monkeypatch.setitem(SHAPES, "tiny", tiny_encoder_config)

    encoder = random_encoder("random:tiny")

    assert encoder.config == tiny_encoder_config
    assert encoder.embeddings.word.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert encoder.layers[0].attention.query.bias.abs().max() == 0


def test_random_encoder_unknown() -> None:
    with pytest.raises(ConfigError, match=r"^random:mini: unknown shape 'mini'\. Did you mean 'minilm-l6'\?$"):
        random_encoder("random:mini")
