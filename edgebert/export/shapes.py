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
    "roberta-base": EncoderConfig(
        family="roberta",
        layers=12,
        hidden_size=768,
        heads=12,
        feed_forward_size=3072,
        vocabulary_size=50265,
        token_types=1,
        norm_epsilon=1e-5,
        pad_token_id=1,
        positions_skip_padding=True,
    ),
    "distilbert": EncoderConfig(
        family="distilbert",
        layers=6,
        hidden_size=768,
        heads=12,
        feed_forward_size=3072,
        vocabulary_size=30522,
        token_types=0,
        classifier_dropout=0.2,
    ),
    "albert-base": EncoderConfig(
        family="albert",
        layers=12,
        hidden_size=768,
        heads=12,
        feed_forward_size=3072,
        vocabulary_size=30000,
        activation="gelu_new",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        classifier_dropout=0.1,
        embedding_size=128,
        shared_layers=12,
    ),
    "electra-small": EncoderConfig(
        family="electra",
        layers=12,
        hidden_size=256,
        heads=4,
        feed_forward_size=1024,
        vocabulary_size=30522,
        embedding_size=128,
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
