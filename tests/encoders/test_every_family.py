"""What holds for every family; what only one has is tested in its own file."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from edgebert import registry
from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import load_checkpoint
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import checkpoint_weights, load_encoder, load_weights, settings_of
from edgebert.errors import ConfigError

FAMILIES = registry.names("edgebert.encoders")
NEVER = {"default": OperatingPoint(policy="never", knobs={})}
FamilyConfig = Callable[..., EncoderConfig]
MakeEncoder = Callable[..., Encoder]


def _inputs(shape: EncoderConfig, *, is_padded: bool = True) -> dict[str, Tensor]:
    """Five rows of 1 to 12 tokens, padded at the end, with segments where the family has them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 1, 5, 9, 3]) if is_padded else torch.full((5,), 12)
    mask = (torch.arange(12)[None, :] < lengths[:, None]).long()
    ids = torch.randint(2, shape.vocabulary_size, (5, 12), generator=generator)
    inputs = {"input_ids": torch.where(mask == 1, ids, shape.pad_token_id), "attention_mask": mask}
    if shape.token_types > 1:
        inputs["token_type_ids"] = torch.randint(0, 2, (5, 12), generator=generator) * mask
    return inputs


def _hugging_face(encoder: Encoder) -> Any:
    """The same encoder as `transformers` has it; only a pooler, which no hidden state sees, keeps its own weights."""
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**settings_of(encoder.config)))
    prefix = registry.load("edgebert.encoders", encoder.config.family).PREFIX
    weights = {name.removeprefix(prefix): tensor for name, tensor in checkpoint_weights(encoder).items()}
    report = model.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("pooler.") for name in report.missing_keys)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("is_padded", [True, False])
def test_family_equals_hugging_face(
    make_encoder: MakeEncoder, family_config: FamilyConfig, family: str, attention: str, is_padded: bool
) -> None:
    encoder = make_encoder(7, **vars(family_config(family))).double()
    inputs = _inputs(encoder.config, is_padded=is_padded)
    reference = _hugging_face(encoder).double()
    reference.set_attn_implementation(attention)

    with torch.no_grad():
        states = encoder(**inputs)
        expected = reference(**inputs, output_hidden_states=True).hidden_states

    real = inputs["attention_mask"].bool()
    differences = [(ours - theirs)[real].abs().max() for ours, theirs in zip(states, expected, strict=True)]
    assert len(states) == encoder.config.layers + 1
    assert max(differences) <= 1e-10
    assert min((after - before)[real].abs().max() for before, after in itertools.pairwise(states)) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_family_padding_has_no_influence(make_encoder: MakeEncoder, family_config: FamilyConfig, family: str) -> None:
    encoder = make_encoder(**vars(family_config(family))).double()
    inputs = _inputs(encoder.config)

    with torch.no_grad():
        padded = encoder(**inputs)
        alone = encoder(**{name: value[2:3, :5] for name, value in inputs.items()})

    assert (torch.stack(alone)[:, 0] - torch.stack(padded)[:, 2, :5]).abs().max() <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_family_reads_segments_only_where_it_has_them(
    make_encoder: MakeEncoder, family_config: FamilyConfig, family: str
) -> None:
    encoder = make_encoder(**vars(family_config(family)))
    inputs = _inputs(encoder.config)
    ones = torch.ones_like(inputs["input_ids"])

    with torch.no_grad():
        without = encoder(inputs["input_ids"], inputs["attention_mask"])[-1]
        zeros = encoder(inputs["input_ids"], inputs["attention_mask"], torch.zeros_like(ones))[-1]
        changed = encoder(inputs["input_ids"], inputs["attention_mask"], ones)[-1]

    assert torch.equal(without, zeros)
    assert torch.equal(without, changed) == (encoder.config.token_types < 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_encoder_of_a_hugging_face_folder(
    make_encoder: MakeEncoder, family_config: FamilyConfig, tmp_path: Path, family: str
) -> None:
    encoder = make_encoder(**vars(family_config(family)))
    model = _hugging_face(encoder)
    model.save_pretrained(tmp_path)

    loaded = load_encoder(str(tmp_path))
    without_dropout = load_encoder(str(tmp_path), attention_dropout=0.0)

    prefix = registry.load("edgebert.encoders", family).PREFIX
    theirs = {f"{prefix}{name}" for name in model.state_dict() if not name.startswith("pooler.")}
    assert loaded.config == encoder.config
    assert without_dropout.config == replace(encoder.config, attention_dropout=0.0)
    assert set(checkpoint_weights(loaded)) == theirs
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_load_weights_missing(make_encoder: MakeEncoder, family_config: FamilyConfig, family: str) -> None:
    encoder = make_encoder(**vars(family_config(family)))
    weights = checkpoint_weights(encoder)
    name = next(name for name in weights if name.endswith("position_embeddings.weight"))
    del weights[name]

    message = rf"^x: no weight for embeddings\.position\.weight; is it a {family} checkpoint\?$"
    with pytest.raises(ConfigError, match=message):
        load_weights(encoder, weights, where="x")


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_checkpoint_is_a_hugging_face_classifier_and_back(
    save_tiny_checkpoint: Callable[..., Path], family_config: FamilyConfig, tmp_path: Path, family: str
) -> None:
    folder = save_tiny_checkpoint({"name": "plain", "pool": "cls"}, NEVER, **vars(family_config(family)))
    ours = load_checkpoint(folder).model
    inputs = _inputs(ours.encoder.config)

    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "tokenizer.json", tmp_path / "theirs")
    back = load_checkpoint(tmp_path / "theirs")

    assert (
        type(theirs).__name__ == registry.load("edgebert.encoders", family).CLASS_PREFIX + "ForSequenceClassification"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert back.facts.labels == ("negative", "positive")
    assert back.model.encoder.config == ours.encoder.config
    with torch.no_grad():
        logits = ours.double().eval()(**inputs)
        assert (theirs.double().eval()(**inputs).logits - logits).abs().max() <= 1e-10
        assert (back.model.double().eval()(**inputs) - logits).abs().max() <= 1e-10
    assert logits.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_checkpoint_is_a_hugging_face_reader_and_back(
    save_tiny_checkpoint: Callable[..., Path], family_config: FamilyConfig, tmp_path: Path, family: str
) -> None:
    shape = vars(family_config(family))
    folder = save_tiny_checkpoint({"name": "plain", "pool": "mean"}, NEVER, task="question_answering", **shape)
    ours = load_checkpoint(folder).model
    inputs = _inputs(ours.encoder.config)

    theirs, report = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "tokenizer.json", tmp_path / "theirs")
    back = load_checkpoint(tmp_path / "theirs")

    assert type(theirs).__name__ == registry.load("edgebert.encoders", family).CLASS_PREFIX + "ForQuestionAnswering"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert back.facts.labels == ("start", "end")
    assert back.facts.config.train.task == "question_answering"
    with torch.no_grad():
        logits = ours.double().eval()(**inputs)
        given = theirs.double().eval()(**inputs)
        expected = torch.stack([given.start_logits, given.end_logits], dim=-1)
        real = inputs["attention_mask"] == 1
        assert (expected - logits)[real].abs().max() <= 1e-10
        assert (back.model.double().eval()(**inputs) - logits).abs().max() <= 1e-10
    assert (logits[~real] == -1e4).all()
    assert logits[real].std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_classification_head_drops_out_at_the_familys_rate(family_config: FamilyConfig, family: str) -> None:
    module = registry.load("edgebert.encoders", family)

    head = module.ClassificationHead(family_config(family, classifier_dropout=0.35), 2)

    assert {part.p for part in head.modules() if isinstance(part, torch.nn.Dropout)} == {0.35}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "x: is_decoder: expected false, got true; only encoders are supported."),
        ({"add_cross_attention": True}, "x: add_cross_attention: expected false, got true; only encoders are"),
        (
            {"position_embedding_type": "relative_key"},
            "x: position_embedding_type: expected absolute, got relative_key",
        ),
    ],
)
def test_read_config_refused(family_config: FamilyConfig, family: str, changes: dict[str, Any], message: str) -> None:
    module = registry.load("edgebert.encoders", family)

    with pytest.raises(ConfigError) as raised:
        module.read_config({**module.write_config(family_config(family)), **changes}, where="x")

    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("family", FAMILIES)
def test_read_config_of_an_unknown_activation(family_config: FamilyConfig, family: str) -> None:
    module = registry.load("edgebert.encoders", family)
    name = "activation" if family == "distilbert" else "hidden_act"

    with pytest.raises(ConfigError, match=rf"^x: {name}: unknown 'gelu_mew'\. Did you mean 'gelu_new'\?$"):
        module.read_config({**module.write_config(family_config(family)), name: "gelu_mew"}, where="x")


@pytest.mark.parametrize("family", FAMILIES)
def test_read_config_of_another_file(family: str) -> None:
    name = "n_layers" if family == "distilbert" else "num_hidden_layers"

    with pytest.raises(ConfigError, match=f"^x: {name}: expected a number, got none; is it a {family} checkpoint"):
        registry.load("edgebert.encoders", family).read_config({}, where="x")


@pytest.mark.parametrize("family", FAMILIES)
def test_read_config_of_a_bare_file_takes_the_familys_defaults(family: str) -> None:
    module = registry.load("edgebert.encoders", family)
    theirs = transformers.AutoConfig.for_model(family.replace("_", "-"), pad_token_id=None).to_dict()
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    needed += ("n_layers", "dim", "n_heads", "hidden_dim", "max_position_embeddings")

    bare = module.read_config({name: theirs[name] for name in needed if name in theirs}, where="x")

    pad_token_id = 1 if "roberta" in family else 0
    assert bare == module.read_config({**theirs, "pad_token_id": pad_token_id}, where="x")
