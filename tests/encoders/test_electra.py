from collections.abc import Callable

import pytest
import transformers

from edgebert.encoders import electra
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import checkpoint_weights


@pytest.mark.parametrize(("width", "is_mapped"), [(16, True), (32, False)])
def test_embeddings_are_mapped_where_they_are_narrower(
    family_config: Callable[..., EncoderConfig], width: int, is_mapped: bool
) -> None:
    settings = {**electra.write_config(family_config("electra")), "embedding_size": width}

    encoder = Encoder(electra.read_config(settings, where="x"))

    model = transformers.ElectraModel(transformers.ElectraConfig(**settings))
    assert set(checkpoint_weights(encoder)) == {f"electra.{name}" for name in model.state_dict()}
    assert ("electra.embeddings_project.weight" in checkpoint_weights(encoder)) == is_mapped
    assert electra.write_config(encoder.config) == settings


def test_read_config_of_the_published_small_shape() -> None:
    shape = electra.read_config(transformers.ElectraConfig().to_dict(), where="x")

    assert (shape.layers, shape.hidden_size, shape.heads, shape.feed_forward_size) == (12, 256, 4, 1024)
    assert (shape.embedding_size, shape.token_types, shape.max_positions) == (128, 2, 512)
