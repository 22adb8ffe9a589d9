from collections.abc import Callable

import transformers

from edgebert.encoders import distilbert
from edgebert.encoders._blocks import Encoder, EncoderConfig


def test_there_are_no_segments(
    make_encoder: Callable[..., Encoder], family_config: Callable[..., EncoderConfig]
) -> None:
    encoder = make_encoder(**vars(family_config("distilbert")))

    assert encoder.config.input_names == ("input_ids", "attention_mask")
    assert not [name for name in encoder.state_dict() if "token_type" in name]


def test_read_config_of_the_published_shape() -> None:
    shape = distilbert.read_config(transformers.DistilBertConfig().to_dict(), where="x")

    assert (shape.layers, shape.hidden_size, shape.heads, shape.feed_forward_size) == (6, 768, 12, 3072)
    assert (shape.token_types, shape.max_positions, shape.head_dropout) == (0, 512, 0.2)


def test_sinusoidal_positions_are_a_way_to_begin_only(family_config: Callable[..., EncoderConfig]) -> None:
    settings = {**distilbert.write_config(family_config("distilbert")), "sinusoidal_pos_embds": True}

    assert distilbert.read_config(settings, where="x") == family_config("distilbert")
