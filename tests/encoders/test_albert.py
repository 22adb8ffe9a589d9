from collections.abc import Callable

import pytest
import torch
import transformers

from edgebert.encoders import albert
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import checkpoint_weights
from edgebert.errors import ConfigError

FamilyConfig = Callable[..., EncoderConfig]
MakeEncoder = Callable[..., Encoder]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def test_layers_are_one_module_stored_once(make_encoder: MakeEncoder, family_config: FamilyConfig) -> None:
    encoder = make_encoder(**vars(family_config("albert")))

    names = [name for name in encoder.state_dict() if name.startswith("layers.")]

    assert len(encoder.layers) == 3
    assert len({id(layer) for layer in encoder.layers}) == 1
    assert {name.split(".")[1] for name in names} == {"0"}
    assert len(names) == 16
    assert [name for name in checkpoint_weights(encoder) if "albert_layer_groups.1" in name] == []


def test_groups_of_layers(make_encoder: MakeEncoder, family_config: FamilyConfig) -> None:
    encoder = make_encoder(**vars(family_config("albert", layers=4, shared_layers=2))).double()
    settings = albert.write_config(encoder.config)
    model = transformers.AlbertModel(transformers.AlbertConfig(**settings), add_pooling_layer=False).double().eval()
    model.load_state_dict({name.removeprefix("albert."): w for name, w in checkpoint_weights(encoder).items()})

    with torch.no_grad():
        states = encoder(*_inputs())
        expected = model(*_inputs(), output_hidden_states=True).hidden_states

    assert settings["num_hidden_groups"] == 2
    assert albert.read_config(settings, where="x") == encoder.config
    assert [encoder.layers[index] is encoder.layers[0] for index in range(4)] == [True, True, False, False]
    assert max((ours - theirs).abs().max() for ours, theirs in zip(states, expected, strict=True)) <= 1e-10


@pytest.mark.parametrize(("layers", "different"), [(1, 1), (2, 1), (4, 2)])
def test_first_keeps_copies_of_the_first_layers(
    make_encoder: MakeEncoder, family_config: FamilyConfig, layers: int, different: int
) -> None:
    encoder = make_encoder(**vars(family_config("albert", layers=6, shared_layers=2)))

    shorter = encoder.first(layers).eval()

    assert (len(shorter.layers), shorter.config.different_layers) == (layers, different)
    assert albert.read_config(albert.write_config(shorter.config), where="x") == shorter.config
    with torch.no_grad():
        assert torch.equal(shorter(*_inputs())[-1], encoder(*_inputs())[layers])
        shorter.layers[0].attention.query.weight.zero_()
    assert encoder.layers[0].attention.query.weight.abs().sum() > 0


def test_first_ends_inside_a_later_group(make_encoder: MakeEncoder, family_config: FamilyConfig) -> None:
    encoder = make_encoder(**vars(family_config("albert", layers=6, shared_layers=2)))

    with pytest.raises(ConfigError, match=r"^the first 3 layers: expected a multiple of 2, which share their weights"):
        encoder.first(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_group_num": 2}, "x: inner_group_num: expected 1, got 2; more layers in a group are not supported."),
        ({"num_hidden_groups": 2}, "x: num_hidden_groups: expected a divisor of the 3 layers, got 2."),
    ],
)
def test_read_config_refused(family_config: FamilyConfig, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        albert.read_config({**albert.write_config(family_config("albert")), **changes}, where="x")

    assert str(raised.value) == message


def test_embeddings_as_wide_as_the_layers_are_mapped_too(family_config: FamilyConfig) -> None:
    settings = albert.write_config(family_config("albert", embedding_size=32))

    encoder = Encoder(albert.read_config(settings, where="x"))

    assert "albert.encoder.embedding_hidden_mapping_in.weight" in checkpoint_weights(encoder)
