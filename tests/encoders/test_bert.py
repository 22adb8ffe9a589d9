import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgebert.encoders import bert
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import checkpoint_weights, load_encoder, load_weights, settings_of
from edgebert.errors import ConfigError

MakeEncoder = Callable[..., Encoder]


def _inputs(vocabulary: int, token_types: int = 2) -> dict[str, Tensor]:
    """Five rows of 1 to 12 tokens, padded at the end."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(12)[None, :] < torch.tensor([12, 1, 5, 9, 3])[:, None]).long()
    return {
        "input_ids": torch.randint(1, vocabulary, (5, 12), generator=generator) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, token_types, (5, 12), generator=generator) * mask,
    }


def _hugging_face(encoder: Encoder) -> transformers.BertModel:
    settings = transformers.BertConfig(**settings_of(encoder.config))
    model = transformers.BertModel(settings, add_pooling_layer=False).eval()
    model.load_state_dict({name.removeprefix("bert."): w for name, w in checkpoint_weights(encoder).items()})
    return model


@pytest.fixture
def folder(tmp_path: Path, make_encoder: MakeEncoder) -> Path:
    """A checkpoint folder of a tiny BertModel."""
    _hugging_face(make_encoder()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _change(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"activation": "relu"},
        {"activation": "gelu_new"},
        {"layers": 1, "heads": 1, "token_types": 1},
        {"layers": 5, "hidden_size": 24, "heads": 3, "feed_forward_size": 20, "norm_epsilon": 1e-5},
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_equals_hugging_face(make_encoder: MakeEncoder, shape: dict[str, Any], attention: str) -> None:
    encoder = make_encoder(7, **shape)
    inputs = _inputs(encoder.config.vocabulary_size, encoder.config.token_types)
    reference = _hugging_face(encoder)
    reference.set_attn_implementation(attention)

    with torch.no_grad():
        states = encoder(**inputs)
        expected = reference(**inputs, output_hidden_states=True).hidden_states

    real = inputs["attention_mask"].bool()
    assert len(states) == len(expected) == encoder.config.layers + 1
    assert (
        max((ours[real] - theirs[real]).abs().max().item() for ours, theirs in zip(states, expected, strict=True))
        <= 1e-5
    )


def test_bert_without_token_types_takes_zeros(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    inputs = _inputs(encoder.config.vocabulary_size)
    zeros = {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}

    with torch.no_grad():
        without = encoder(inputs["input_ids"], inputs["attention_mask"])

        assert torch.equal(without[-1], encoder(**zeros)[-1])
        assert not torch.allclose(without[-1], encoder(**inputs)[-1])


def test_bert_padding_has_no_influence(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    inputs = _inputs(encoder.config.vocabulary_size)

    with torch.no_grad():
        padded = encoder(**inputs)
        alone = encoder(**{name: value[2:3, :5] for name, value in inputs.items()})

    assert (torch.stack(alone)[:, 0] - torch.stack(padded)[:, 2, :5]).abs().max() <= 1e-5


@pytest.mark.parametrize("has_prefix", [False, True])
def test_load_encoder_from_a_folder(folder: Path, make_encoder: MakeEncoder, has_prefix: bool) -> None:
    if has_prefix:
        _change(folder, lambda weights: {f"bert.{name}": tensor for name, tensor in weights.items()})
    encoder = make_encoder()

    loaded = load_encoder(str(folder))

    assert loaded.config == encoder.config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in encoder.state_dict().items())


def test_checkpoint_weights_round_trip(make_encoder: MakeEncoder) -> None:
    encoder, other = make_encoder(1), make_encoder(2)

    weights = checkpoint_weights(encoder)
    load_weights(other, weights, where="x")

    assert set(weights) == {f"bert.{name}" for name in _hugging_face(encoder).state_dict()}
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in encoder.state_dict().items())


def test_load_weights_missing(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    weights = checkpoint_weights(encoder)
    del weights["bert.encoder.layer.1.intermediate.dense.weight"]

    with pytest.raises(ConfigError, match=r"^x: no weight for layers\.1\.feed_forward\.expand\.weight; is it a bert"):
        load_weights(encoder, weights, where="x")


def test_load_weights_wrong_shape(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    weights = checkpoint_weights(encoder)
    weights["bert.encoder.layer.0.attention.self.query.bias"] = torch.zeros(7)

    message = r"^x: layers\.0\.attention\.query\.bias: expected shape \(32,\), got \(7,\)\.$"
    with pytest.raises(ConfigError, match=message):
        load_weights(encoder, weights, where="x")


def test_load_encoder_unknown_family(tmp_path: Path) -> None:
    settings = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)
    transformers.GPT2Model(settings).save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=r"^unknown encoder 'gpt2'\."):
        load_encoder(str(tmp_path))


def test_load_encoder_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-there: no such checkpoint folder"):
        load_encoder(str(tmp_path / "nothing-there"))


def test_load_encoder_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: cannot be opened as a checkpoint folder"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_mew"}, "x: hidden_act: unknown 'gelu_mew'. Did you mean 'gelu_new'?"),
        (
            {"position_embedding_type": "relative_key"},
            "x: position_embedding_type: expected absolute, got relative_key.",
        ),
    ],
)
def test_read_config_refused(tiny_encoder_config: EncoderConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bert.read_config({**bert.write_config(tiny_encoder_config), **changes}, where="x")

    assert str(raised.value) == message


def test_read_config_of_an_old_file_takes_the_defaults(tiny_encoder_config: EncoderConfig) -> None:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    settings = bert.write_config(tiny_encoder_config)

    config = bert.read_config({name: settings[name] for name in names}, where="x")

    assert (config.max_positions, config.token_types, config.activation) == (512, 2, "gelu")
    assert (config.norm_epsilon, config.pad_token_id) == (1e-12, 0)


def test_first_keeps_copies_of_the_first_layers(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    inputs = _inputs(encoder.config.vocabulary_size)
    shorter = encoder.first(2).eval()

    with torch.no_grad():
        assert torch.equal(shorter(**inputs)[-1], encoder(**inputs)[2])
        shorter.layers[0].attention.query.weight.zero_()
        assert encoder.layers[0].attention.query.weight.abs().sum() > 0
    assert shorter.config.layers == 2
