import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers

from edgebert.bundle.manifest import OperatingPoint
from edgebert.checkpoint import build_model, fetch_tokenizer, load_checkpoint, save_checkpoint
from edgebert.config import RunConfig
from edgebert.encoders._blocks import Encoder, EncoderConfig
from edgebert.encoders._checkpoint import load_encoder, settings_of
from edgebert.errors import ConfigError, MissingExtraError

NEVER = {"default": OperatingPoint(policy="never", knobs={})}


@pytest.fixture
def copy(tmp_path: Path, dact_checkpoint: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    return shutil.copytree(dact_checkpoint, tmp_path / "checkpoint")


def _inputs() -> dict[str, torch.Tensor]:
    mask = (torch.arange(9)[None, :] < torch.tensor([9, 4, 1])[:, None]).long()
    ids = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (ids % 2)}


def _edit_facts(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "edgebert.yaml"
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("method", ["plain_checkpoint", "dact_checkpoint"])
def test_save_checkpoint_round_trip(request: pytest.FixtureRequest, tmp_path: Path, method: str) -> None:
    source: Path = request.getfixturevalue(method)
    checkpoint = load_checkpoint(source)

    save_checkpoint(checkpoint, tmp_path / "copy", force=False)

    names = sorted(path.name for path in source.iterdir())
    assert names == ["config.json", "edgebert.yaml", "model.safetensors", "tokenizer.json"]
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in names} == {
        name: (source / name).read_bytes() for name in names
    }


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
@pytest.mark.parametrize("layers", [None, 2])
def test_save_checkpoint_keeps_the_answers(
    save_tiny_checkpoint: Callable[..., Path], tmp_path: Path, pool: str, layers: int | None
) -> None:
    first = load_checkpoint(save_tiny_checkpoint({"name": "plain", "pool": pool, "layers": layers}, NEVER))

    save_checkpoint(first, tmp_path / "copy", force=False)
    second = load_checkpoint(tmp_path / "copy")

    assert second.model.encoder.config.layers == (layers or 3)
    assert torch.equal(second.model.eval()(**_inputs()), first.model.eval()(**_inputs()))


@pytest.mark.parametrize("method", ["plain_checkpoint", "dact_checkpoint"])
def test_checkpoint_opens_as_a_hugging_face_model(request: pytest.FixtureRequest, method: str) -> None:
    source: Path = request.getfixturevalue(method)
    ours = load_checkpoint(source).model.encoder.eval()

    theirs = transformers.AutoModel.from_pretrained(source).eval()

    with torch.no_grad():
        difference = ours(**_inputs())[-1] - theirs(**_inputs()).last_hidden_state
    assert difference[_inputs()["attention_mask"].bool()].abs().max() <= 1e-5


def test_plain_checkpoint_opens_as_a_hugging_face_classifier(plain_checkpoint: Path) -> None:
    ours = load_checkpoint(plain_checkpoint).model.eval()

    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        plain_checkpoint, output_loading_info=True
    )

    with torch.no_grad():
        difference = ours(**_inputs()) - theirs.eval()(**_inputs()).logits
    assert difference.abs().max() <= 1e-5
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_load_checkpoint_of_a_hugging_face_classifier(
    plain_checkpoint: Path, tmp_path: Path, tiny_hf_folder: Path
) -> None:
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(plain_checkpoint).eval()
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_hf_folder / name, tmp_path)

    checkpoint = load_checkpoint(tmp_path)

    assert checkpoint.facts.labels == ("negative", "positive")
    assert checkpoint.facts.config.method_name == "plain"
    assert checkpoint.facts.operating_points == NEVER
    assert "tokenizer.json" in checkpoint.tokenizer
    with torch.no_grad():
        difference = checkpoint.model.eval()(**_inputs()) - theirs(**_inputs()).logits
    assert difference.abs().max() <= 1e-5


def test_load_checkpoint_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: no such checkpoint folder"):
        load_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_load_checkpoint_incomplete(copy: Path, name: str, damage: str) -> None:
    (copy / name).unlink()
    if damage == "garbage":
        (copy / name).write_bytes(b"\x00not a file of this kind")

    with pytest.raises(ConfigError, match=f"^{re.escape(str(copy))}: not a complete checkpoint: "):
        load_checkpoint(copy)


def test_load_checkpoint_missing_unit(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["units.1.halt.bias"]
    save_file(weights, copy / "model.safetensors")

    with pytest.raises(ConfigError, match=r"no weight for units\.1\.halt\.bias; was it trained with this method"):
        load_checkpoint(copy)


def test_load_checkpoint_unit_of_another_shape(copy: Path) -> None:
    _edit_facts(copy, lambda tree: tree["config"]["method"].update(trunk=8))

    message = r"units\.0\.trunk\.weight: expected shape \(8, 32\), got \(16, 32\)"
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(lables=[]), "unknown key 'lables'. Did you mean 'labels'?"),
        (lambda tree: tree.pop("labels"), "object missing required field `labels`"),
        (
            lambda tree: tree["config"]["train"].update(batch=3),
            "unknown key 'config.train.batch'. Did you mean 'batch_size'?",
        ),
        (
            lambda tree: tree["operating_points"]["default"].update(knob=3),
            "unknown key 'operating_points[].knob'. Did you mean 'knobs'?",
        ),
        (lambda tree: tree["config"]["method"].pop("name"), "method.name: expected the name of a method"),
    ],
)
def test_load_checkpoint_facts_refused(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    _edit_facts(copy, change)

    with pytest.raises(ConfigError, match=re.escape(f"{copy / 'edgebert.yaml'}:") + r"(\d+:)? " + re.escape(message)):
        load_checkpoint(copy)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_load_checkpoint_facts_not_a_mapping(copy: Path, text: str) -> None:
    (copy / "edgebert.yaml").write_text(text)

    with pytest.raises(ConfigError, match=r"edgebert\.yaml:(1:)? "):
        load_checkpoint(copy)


def test_load_checkpoint_unknown_family(copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "model_type": "berd"}))

    with pytest.raises(ConfigError, match=r"^unknown encoder 'berd'\. Did you mean 'bert'\?$"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "dact-bert"}, "unknown method 'dact-bert'. Did you mean 'dact_bert'?"),
        ({"name": "plain", "pol": "cls"}, "config: unknown key 'method.pol'. Did you mean 'pool'?"),
        ({"name": "plain", "pool": "max"}, "config: method.pool: invalid enum value 'max'"),
    ],
)
def test_build_model_refused(make_encoder: Callable[..., Encoder], method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_model(make_encoder(), RunConfig(method=method), 2)

    assert str(raised.value) == message


def test_fetch_tokenizer_of_a_folder(tiny_hf_folder: Path, tiny_tokenizer: bytes) -> None:
    files = fetch_tokenizer(str(tiny_hf_folder))

    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    assert files["tokenizer.json"] == tiny_tokenizer


def test_fetch_tokenizer_makes_one_from_a_vocabulary(tmp_path: Path, tiny_hf_folder: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    shutil.copy(tiny_hf_folder / "config.json", tmp_path)

    files = fetch_tokenizer(str(tmp_path))

    assert json.loads(files["tokenizer.json"])["model"]["vocab"]["film"] == 6


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_fetch_tokenizer_makes_one_from_a_wordpiece_vocabulary(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"])
    )

    files = fetch_tokenizer(str(tmp_path))

    encoding = Tokenizer.from_buffer(files["tokenizer.json"]).encode("Good films", "good")
    assert encoding.tokens == ["[CLS]", "good", "film", "##s", "[SEP]", "good", "[SEP]"]
    assert encoding.type_ids == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("entries", "config", "tokens"),
    [
        (["Paris", "paris"], None, ["Paris", "paris"]),
        (["paris", "<S>", "\u211d"], None, ["paris", "paris"]),  # the double-struck R has no lower case
        (["Paris", "paris"], {"do_lower_case": True}, ["paris", "paris"]),
    ],
)
def test_fetch_tokenizer_letter_case_of_a_vocabulary(
    tmp_path: Path, entries: list[str], config: dict[str, bool] | None, tokens: list[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *entries]), encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    files = fetch_tokenizer(str(tmp_path))

    assert Tokenizer.from_buffer(files["tokenizer.json"]).encode("Paris paris").tokens[1:-1] == tokens


def _write_byte_level_vocabulary(folder: Path) -> None:
    tokens = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "go",
        "goo",
        "good",
    ]
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ng o\ngo o\ngoo d\n")


def test_fetch_tokenizer_makes_one_from_a_byte_level_vocabulary(tmp_path: Path) -> None:
    _write_byte_level_vocabulary(tmp_path)

    files = fetch_tokenizer(str(tmp_path))

    encoding = Tokenizer.from_buffer(files["tokenizer.json"]).encode("good é", "good")
    assert encoding.tokens == ["<s>", "good", "Ġ", "Ã", "©", "</s>", "</s>", "good", "</s>"]


def test_fetch_tokenizer_byte_level_vocabulary_without_merges(tmp_path: Path) -> None:
    _write_byte_level_vocabulary(tmp_path)
    (tmp_path / "merges.txt").unlink()

    with pytest.raises(ConfigError, match=r"has no tokenizer that can be opened: vocab\.json without its merges\.txt"):
        fetch_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("family", "name"), [("albert", "spiece.model"), ("xlm-roberta", "sentencepiece.bpe.model")])
def test_fetch_tokenizer_names_the_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / name).write_bytes(b"")

    message = f"{name}: making a tokenizer.json of it needs sentencepiece, which is not installed: pip install"
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        fetch_tokenizer(str(tmp_path))


def test_fetch_tokenizer_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("'NoneType' object has no attribute\n'endswith'")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    (tmp_path / "vocab.txt").write_text("a")

    with pytest.raises(
        ConfigError, match="has no tokenizer that can be opened: 'NoneType' object has no attribute 'en"
    ):
        fetch_tokenizer(str(tmp_path))


def test_fetch_tokenizer_without_the_form_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class SlowTokenizer:
        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "vocab.txt").write_text("a")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: SlowTokenizer())
    (tmp_path / "vocab.txt").write_text("a")

    with pytest.raises(ConfigError, match=r"its SlowTokenizer cannot be written as a tokenizer\.json"):
        fetch_tokenizer(str(tmp_path))


def test_fetch_tokenizer_none(tmp_path: Path, tiny_hf_folder: Path) -> None:
    shutil.copy(tiny_hf_folder / "config.json", tmp_path)

    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: has no tokenizer that can be opened"):
        fetch_tokenizer(str(tmp_path))


def test_load_checkpoint_of_a_classifier_with_too_few_positions(
    tmp_path: Path, tiny_encoder_config: EncoderConfig
) -> None:
    config = transformers.BertConfig(**{**settings_of(tiny_encoder_config), "max_position_embeddings": 3})
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: max_length: expected 4 or more, got 3$"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["settings", "weights"])
def test_load_encoder_of_a_folder_that_does_not_fit_together(tmp_path: Path, tiny_hf_folder: Path, damage: str) -> None:
    folder = shutil.copytree(tiny_hf_folder, tmp_path / "copy")
    if damage == "settings":
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}))
    else:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(ConfigError) as raised:
        load_encoder(str(folder))

    assert str(raised.value).startswith(f"{folder}: cannot be opened as a checkpoint folder or hub id: ")
    assert "\n" not in str(raised.value)


def test_load_checkpoint_of_an_encoder_without_a_trained_head(tiny_hf_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no weights for .*classifier.*; it is no trained classifier"):
        load_checkpoint(tiny_hf_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 1}, 'has one output and no problem_type, .* write "problem_type": "regression" into its'),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            "problem_type: expected regression or single_label_classification, got multi_label_classification",
        ),
        (
            {"num_labels": 2, "problem_type": "regression"},
            "expected one name for the one value of regression, got 'LABEL_0', 'LABEL_1'",
        ),
    ],
)
def test_load_checkpoint_of_another_kind_of_classifier(
    tmp_path: Path, tiny_encoder_config: EncoderConfig, change: dict[str, object], message: str
) -> None:
    config = transformers.BertConfig(**settings_of(tiny_encoder_config), **change)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=message):
        load_checkpoint(tmp_path)
