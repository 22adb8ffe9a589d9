"""Reading, recognising, refusing and the command line, whatever the naming."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgebert import cli, registry
from edgebert.checkpoint import load_checkpoint
from edgebert.convert import convert_checkpoint
from edgebert.convert._tokenizer import find_tokenizer
from edgebert.encoders._blocks import EncoderConfig
from edgebert.errors import ConfigError, EdgeBertError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def weights(bert_config: transformers.BertConfig, draw: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """The tensors of a PABEE model of 3 layers and 2 labels, the simplest of the namings."""
    model = nn.Module()
    model.bert = transformers.BertModel(bert_config)
    model.classifiers = nn.ModuleList(nn.Linear(32, 2) for _ in range(3))
    return draw(model).state_dict()


@pytest.fixture
def settings(bert_config: transformers.BertConfig) -> dict[str, Any]:
    return bert_config.to_dict()


@pytest.mark.parametrize("name", registry.names("edgebert.convert"))
def test_naming_defines_its_names(name: str) -> None:
    module = registry.load("edgebert.convert", name)

    assert (module.__doc__ or "").startswith(f"{name}: ")
    assert callable(module.recognises)
    assert callable(module.translate)
    assert (ROOT / "tests" / "convert" / f"test_from_{name}.py").is_file()


def test_pickles_are_opened_in_one_place() -> None:
    files = (ROOT / "edgebert").rglob("*.py")

    found = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if re.search(r"torch\.load\(|pickle\.load", path.read_text())
    ]

    assert found == ["edgebert/convert/_source.py"]
    assert re.findall(r"torch\.load\(.*\)", (ROOT / found[0]).read_text()) == [
        'torch.load(path, map_location="cpu", weights_only=True)'
    ]


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
def test_every_form_of_weights_is_read(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    folder = save_original({name: tensor.half() for name, tensor in weights.items()}, settings, form=form)

    convert_checkpoint(folder, tmp_path / "checkpoint")

    model: Any = load_checkpoint(tmp_path / "checkpoint").model
    for layer, part in enumerate(model.classifiers):
        assert torch.equal(part.label.weight, weights[f"classifiers.{layer}.weight"].half().float())


def test_safetensors_is_preferred(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(weights, settings, form="safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not read")

    assert convert_checkpoint(folder, tmp_path / "checkpoint").naming == "pabee"


def test_every_tensor_without_a_counterpart_is_named(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    del weights["classifiers.1.bias"], weights["bert.encoder.layer.2.output.dense.weight"]
    weights["classifiers.3.weight"] = weights["bert.extra"] = torch.ones(2)
    weights["bert.pooler.dense.bias"] = torch.ones(7)
    folder = save_original(weights, settings)

    with pytest.raises(ConfigError) as raised:
        convert_checkpoint(folder, tmp_path / "checkpoint")

    assert set(str(raised.value).removeprefix(f"{folder}: ").removesuffix(".").split("; ")) == {
        "cannot be converted from pabee, 5 tensors: bert.pooler.dense.bias has the shape (7,), expected (32,)",
        "classifiers.3.weight has no place",
        "bert.extra has no place",
        "classifiers.1.bias is missing, for our classifiers.1.label.bias",
        "bert.encoder.layer.2.output.dense.weight is missing, for our encoder.layers.2.feed_forward.contract.weight",
    }
    assert not (tmp_path / "checkpoint").exists()


def test_too_few_positions(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(weights, settings | {"max_position_embeddings": 3})

    with pytest.raises(ConfigError, match=r"config\.json: max_length: expected 4 or more, got 3"):
        convert_checkpoint(folder, tmp_path / "checkpoint")


def test_naming_told_is_taken(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(weights, settings)

    with pytest.raises(ConfigError, match=r"cannot be converted from deebert, \d+ tensors: .*exits\.0\.pooler"):
        convert_checkpoint(folder, tmp_path / "checkpoint", naming="deebert")


def test_unknown_naming(settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_original({"bert.encoder.layer.0.output.dense.bias": torch.ones(2)}, settings)

    with pytest.raises(
        ConfigError, match=r"of no known kind \(bert\.encoder.*known: deebert, elasticbert, fastbert, pabee"
    ):
        convert_checkpoint(folder, tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=r"unknown naming 'deebrt'\. Did you mean 'deebert'"):
        convert_checkpoint(folder, tmp_path / "checkpoint", naming="deebrt")


def test_names_of_two_kinds(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(weights | {"bert.encoder.highway.0.classifier.bias": torch.ones(2)}, settings)

    with pytest.raises(ConfigError, match="its tensor names fit deebert and pabee; say which with --from"):
        convert_checkpoint(folder, tmp_path / "checkpoint")


class _Code:
    """Something that a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": _Code()}, r"refused: to read it, \S*mkdir would have to be run; only files of plain tensors are opened"),
        ([torch.ones(2)], "expected tensors by name, as state_dict\\(\\) gives them, got list"),
        ({}, "expected tensors by name, as state_dict\\(\\) gives them, got nothing"),
        ({"model": {"a": torch.ones(2)}}, "expected tensors by name, .* got dict for 'model'"),
        ({3: torch.ones(2)}, "expected tensors by name, .* got Tensor for 3"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_file_of_something_else(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: object,
    message: str,
    is_zip: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(value, tmp_path / "model.bin", _use_new_zipfile_serialization=is_zip)
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    with pytest.raises(ConfigError, match=message) as raised:
        convert_checkpoint(tmp_path / "model.bin", tmp_path / "checkpoint")

    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
    form: str,
    share: float,
) -> None:
    folder = save_original(weights, settings, form=form)
    path = next(path for path in folder.iterdir() if "model." in path.name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    with pytest.raises(ConfigError, match=r"cannot be read.*is it complete") as raised:
        convert_checkpoint(folder, tmp_path / "checkpoint")

    assert str(path) in str(raised.value)
    assert "weights_only" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json: no such configuration file; name the model's own with --config"),
        ("config.json", "{", r"config\.json: cannot be read as JSON"),
        ("config.json", "[]", r"config\.json: expected settings by name, got list"),
        ("pytorch_model.bin", None, r"has none of model\.safetensors, pytorch_model\.bin"),
        ("edgebert.yaml", "", "is a checkpoint of edgebert already"),
        ("tokenizer.json", None, r"original: has no tokenizer that can be opened: none of vocab\.txt.*--tokenizer"),
        ("tokenizer.json", "{}", r"its tokenizer\.json cannot be read"),
    ],
)
def test_folder_incomplete(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
    name: str,
    content: str | None,
    message: str,
) -> None:
    folder = save_original(weights, settings)
    (folder / name).unlink() if content is None else (folder / name).write_text(content, encoding="utf-8")

    with pytest.raises(ConfigError, match=message):
        convert_checkpoint(folder, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "a", "1": "b", "2": "c"}, "id2label: expected 2 names, as many as classifiers.0.weight has rows, got 3"),
        ({"a": 0, "b": 1}, "id2label: expected names by number, got"),
        (["a", "b"], "id2label: expected names by number, got"),
    ],
)
def test_labels_do_not_fit(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
    labels: object,
    message: str,
) -> None:
    folder = save_original(weights, settings | {"id2label": labels})

    with pytest.raises(ConfigError, match=message):
        convert_checkpoint(folder, tmp_path / "checkpoint")


def test_tokenizer_of_another_model(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    folder = save_original(weights | {name: weights[name][:50]}, settings | {"vocab_size": 50})

    with pytest.raises(ConfigError, match=r"its tokenizer has ids up to .*, but the model knows 50 of them"):
        convert_checkpoint(folder, tmp_path / "checkpoint")


@pytest.mark.parametrize("is_file", [True, False])
def test_tokenizer_of_a_cased_vocabulary(tmp_path: Path, tiny_encoder_config: EncoderConfig, is_file: bool) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris"]), encoding="utf-8")

    files = find_tokenizer(str(file if is_file else tmp_path), tiny_encoder_config)

    assert Tokenizer.from_buffer(files["tokenizer.json"]).encode("Paris").tokens == ["[CLS]", "Paris", "[SEP]"]


def test_target_is_replaced_by_force_only(
    weights: dict[str, Tensor], settings: dict[str, Any], save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(weights, settings)
    convert_checkpoint(folder, tmp_path / "checkpoint")

    with pytest.raises(EdgeBertError, match="exists already; use --force"):
        convert_checkpoint(folder, tmp_path / "checkpoint")
    convert_checkpoint(folder, tmp_path / "checkpoint", force=True)


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["edgebert", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_command(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_original(weights | {"bert.embeddings.position_ids": torch.arange(64)}, settings)

    code = _run(monkeypatch, "convert", folder, tmp_path / "checkpoint", "--json")

    out, err = capsys.readouterr()
    result = json.loads(out)
    assert code == 0
    assert result["schema"] == "edgebert.convert/1"
    assert result["from"] == "pabee"
    assert result["labels"] == ["LABEL_0", "LABEL_1"]
    assert list(result["ignored"]) == ["bert.embeddings.position_ids"]
    assert result["operating_points"]["default"]["policy"] == "patience"
    assert "pabee, recognised by its tensor names; becomes the method pabee: the same method" in err
    assert "ignored, a constant that needs no storing: bert.embeddings.position_ids" in err
    assert "patience(patience=3, tolerance=0.1), chosen on no data" in err
    assert f"next: edgebert export {tmp_path / 'checkpoint'}" in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--from", "deebrt"), 2, "error: unknown naming 'deebrt'. Did you mean 'deebert'?"),
        (("--from", "deebert"), 2, "bert.encoder.highway.1.classifier.bias is missing"),
        (("--config", "missing.json"), 2, "error: missing.json: no such configuration file"),
        (("--tokenizer", "./missing"), 2, "missing"),
        (("--frm", "deebert"), 2, "No such option"),
    ],
)
def test_command_refuses(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    folder = save_original(weights, settings)

    given = _run(monkeypatch, "convert", folder, tmp_path / "checkpoint", *options)

    out, err = capsys.readouterr()
    assert (given, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "checkpoint").exists()


def test_command_without_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "convert", tmp_path / "nothing", tmp_path / "checkpoint") == 2
    assert "nothing: no such folder or file." in capsys.readouterr().err


def test_command_without_torch_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    assert _run(monkeypatch, "convert", tmp_path, tmp_path / "checkpoint") == 5
    assert "edgebert convert needs torch, which is not installed: pip install 'edgebert[" in capsys.readouterr().err
