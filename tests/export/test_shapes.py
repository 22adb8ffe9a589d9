import pytest

from edgebert.encoders._blocks import EncoderConfig
from edgebert.errors import ConfigError
from edgebert.export.shapes import SHAPES, random_encoder


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "feed_forward"),
    [("bert-base", 12, 768, 12, 3072), ("minilm-l6", 6, 384, 12, 1536)],
)
def test_shapes_are_the_published_ones(name: str, layers: int, width: int, heads: int, feed_forward: int) -> None:
    shape = SHAPES[name]

    assert (shape.layers, shape.hidden_size, shape.heads) == (layers, width, heads)
    assert (shape.feed_forward_size, shape.vocabulary_size, shape.max_positions) == (feed_forward, 30522, 512)


def test_random_encoder_weights(monkeypatch: pytest.MonkeyPatch, tiny_encoder_config: EncoderConfig) -> None:
    monkeypatch.setitem(SHAPES, "tiny", tiny_encoder_config)

    encoder = random_encoder("random:tiny")

    assert encoder.config == tiny_encoder_config
    assert encoder.embeddings.word.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert encoder.layers[0].attention.query.bias.abs().max() == 0


def test_random_encoder_unknown() -> None:
    with pytest.raises(ConfigError, match=r"^random:mini: unknown shape 'mini'\. Did you mean 'minilm-l6'\?$"):
        random_encoder("random:mini")
