"""Encoder shapes with random weights, to ask what a method would give on a device before any training."""

from __future__ import annotations

from edgebert.encoders._blocks import Encoder, EncoderConfig, initialise
from edgebert.errors import ConfigError, suggestion

PREFIX = "random:"

SHAPES = {
    "bert-base": EncoderConfig(
        family="bert", layers=12, hidden_size=768, heads=12, feed_forward_size=3072, vocabulary_size=30522
    ),
    "minilm-l6": EncoderConfig(
        family="bert", layers=6, hidden_size=384, heads=12, feed_forward_size=1536, vocabulary_size=30522
    ),
}


def random_encoder(name: str) -> Encoder:
    """Makes an encoder of a named shape, such as `random:bert-base`.

    Raises:
        ConfigError: The shape is unknown.
    """
    shape = name.removeprefix(PREFIX)
    if shape not in SHAPES:
        raise ConfigError(f"{name}: unknown shape {shape!r}.{suggestion(shape, SHAPES)}")
    encoder = Encoder(SHAPES[shape])
    initialise(encoder)
    return encoder
