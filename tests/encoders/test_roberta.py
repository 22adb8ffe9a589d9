from collections.abc import Callable

import pytest
import torch
import transformers

from edgebert.encoders import roberta
from edgebert.encoders._blocks import Embeddings, Encoder, EncoderConfig
from edgebert.errors import ConfigError

FamilyConfig = Callable[..., EncoderConfig]


def test_positions_count_from_after_the_padding_id(family_config: FamilyConfig) -> None:
    embeddings = Embeddings(family_config("roberta"))
    ids = torch.tensor([[0, 9, 8, 2], [0, 2, 1, 1], [5, 1, 5, 2]])

    positions = embeddings._positions(ids)

    assert positions.tolist() == [[2, 3, 4, 5], [2, 3, 1, 1], [2, 1, 3, 4]]


def test_a_text_of_the_longest_length_fits(make_encoder: Callable[..., Encoder], family_config: FamilyConfig) -> None:
    encoder = make_encoder(**vars(family_config("roberta")))
    ids = torch.full((1, 64), 7)

    with torch.no_grad():
        states = encoder(ids, torch.ones_like(ids))

    assert encoder.embeddings.position.num_embeddings == 66
    assert states[-1].shape == (1, 64, 32)
    with pytest.raises(IndexError):
        encoder(torch.full((1, 65), 7), torch.ones(1, 65))


def test_read_config_of_the_published_shape() -> None:
    published = transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )

    shape = roberta.read_config(published.to_dict(), where="x")

    assert (shape.max_positions, shape.token_types, shape.pad_token_id) == (512, 1, 1)
    assert shape.input_names == ("input_ids", "attention_mask")
    assert roberta.write_config(shape)["max_position_embeddings"] == 514


def test_read_config_without_a_position_left(family_config: FamilyConfig) -> None:
    settings = {**roberta.write_config(family_config("roberta")), "max_position_embeddings": 2}

    with pytest.raises(ConfigError, match=r"^x: max_position_embeddings: expected more than pad_token_id \+ 1, got 2"):
        roberta.read_config(settings, where="x")
