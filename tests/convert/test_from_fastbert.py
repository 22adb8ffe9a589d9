"""FastBERT: a small BERT of its own with the published names, norm, segments and inputs, and the road from it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgebert.checkpoint import load_checkpoint
from edgebert.convert import convert_checkpoint
from edgebert.errors import ConfigError
from edgebert.text import TextEncoder

SETTINGS = {"emb_size": 32, "feedforward_size": 64, "hidden_size": 32, "heads_num": 4, "layers_num": 3, "dropout": 0.1}
CLS, SEP = 2, 3


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.beta


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.final_linear = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.linear_layers)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        return self.final_linear((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _Attention(32, 4)
        self.layer_norm_1, self.layer_norm_2 = _Norm(32), _Norm(32)
        self.feed_forward = nn.ModuleDict({"linear_1": nn.Linear(32, 64), "linear_2": nn.Linear(64, 32)})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.layer_norm_1(self.self_attn(x, bias) + x)
        expanded = self.feed_forward["linear_1"](x)
        expanded = expanded * 0.5 * (1 + torch.erf(expanded / 2**0.5))
        return self.layer_norm_2(self.feed_forward["linear_2"](expanded) + x)


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output_layer_0, self.self_atten = nn.Linear(32, 128), _Attention(128, 2)
        self.output_layer_1, self.output_layer_2 = nn.Linear(128, 128), nn.Linear(128, 3)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attended = self.self_atten(torch.tanh(self.output_layer_0(x)), bias)
        return self.output_layer_2(torch.tanh(self.output_layer_1(attended[:, 0])))


class _Kernel(nn.Module):
    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.ModuleDict(
            {
                "word_embedding": nn.Embedding(vocabulary_size, 32),
                "position_embedding": nn.Embedding(512, 32),
                "segment_embedding": nn.Embedding(3, 32),
                "layer_norm": _Norm(32),
            }
        )
        self.encoder = nn.ModuleDict({"transformer": nn.ModuleList(_Layer() for _ in range(3))})

    def states(self, ids: Tensor, segments: Tensor, bias: Tensor) -> list[Tensor]:
        parts = self.embedding
        summed = parts["word_embedding"](ids) + parts["segment_embedding"](segments)
        states = [parts["layer_norm"](summed + parts["position_embedding"](torch.arange(ids.shape[1])))]
        for layer in self.encoder["transformer"]:
            states.append(layer(states[-1], bias))
        return states[1:]


class _FastBert(nn.Module):
    """The model of the package: the encoder under `kernel.`, a pair in one segment, a head of the pre-training."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.kernel = _Kernel(vocabulary_size)
        self.kernel.target = nn.ModuleDict({"nsp_linear_1": nn.Linear(32, 32)})
        self.classifiers = nn.ModuleList(_Classifier() for _ in range(3))

    def segments(self, mask: Tensor, types: Tensor) -> Tensor:
        return mask

    def answers(self, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        bias = (1 - (mask > 0).float())[:, None, None, :] * -10000.0
        states = self.kernel.states(ids, self.segments(mask, types), bias)
        return [classifier(x, bias) for classifier, x in zip(self.classifiers, states, strict=True)]


class _Script(_FastBert):
    """The model of the research script: no prefix, and the second text in segment 2."""

    def segments(self, mask: Tensor, types: Tensor) -> Tensor:
        return mask * (types + 1)

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        named = super().state_dict().items()
        return {name.removeprefix("kernel."): value for name, value in named if ".target." not in name}


@pytest.fixture(params=[_Script, _FastBert], ids=["script", "package"])
def original(request: pytest.FixtureRequest, draw: Callable[[nn.Module], Any], tiny_encoder_config: Any) -> _FastBert:
    return draw(request.param(tiny_encoder_config.vocabulary_size))


def _is_sure(exits: list[NDArray[np.float64]]) -> bool:
    return bool(-(exits[-1] * np.log(exits[-1])).sum() / np.log(3) < 0.5)


def test_fastbert_becomes_fastbert(
    original: _FastBert,
    save_original: Callable[..., Path],
    make_road: Callable[..., Any],
    texts: list[str],
) -> None:
    road = make_road(original, save_original(original.state_dict(), SETTINGS))

    facts = road.conversion.checkpoint.facts
    is_package = type(original) is _FastBert
    assert road.conversion.naming == "fastbert"
    assert facts.config.method == {"name": "fastbert", "pool": "cls"}
    assert facts.operating_points["default"].knobs == {"threshold": 0.5, "scale": "normalised"}
    assert set(road.conversion.ignored) == (
        {f"kernel.target.nsp_linear_1.{kind}" for kind in ("weight", "bias")} if is_package else set()
    )
    # The norm's 1e-6 that is left out comes to 1.3e-4 in double precision too, with weights as large as these.
    road.check_exits([*texts[:20], ("a good movie", "not a bad one at all")], tolerance=5e-4)
    road.check_run(texts[:40], _is_sure)


def test_inputs_are_those_of_the_training(
    original: _FastBert, save_original: Callable[..., Path], tmp_path: Path, tiny_tokenizer: bytes
) -> None:
    folder = save_original(original.state_dict(), SETTINGS)

    made = convert_checkpoint(folder, tmp_path / "checkpoint")

    before, after = (
        TextEncoder(data, max_length=48, pad_token_id=0)
        for data in (tiny_tokenizer, (tmp_path / "checkpoint" / "tokenizer.json").read_bytes())
    )
    good, bad = (before.encode([text])[0].ids[1:-1] for text in ("good movie", "bad plot"))
    single, pair = after.encode(["good movie", ("good movie", "bad plot")])
    is_package = type(original) is _FastBert
    assert single.ids == [CLS, *good]
    assert pair.ids == [CLS, *good, SEP, *bad] + ([] if is_package else [SEP])
    first = len(good) + 2
    rows = load_checkpoint(tmp_path / "checkpoint").model.encoder.embeddings.token_type.weight
    table = original.kernel.embedding["segment_embedding"].weight
    segments = [int((table == rows[kind]).all(1).nonzero()) for kind in pair.type_ids]
    assert segments == [1] * first + [1 if is_package else 2] * (len(pair.ids) - first)
    assert any(note.startswith("the tokenizer now writes a text as [CLS] text") for note in made.notes)
    assert any("measure before you rely on it" in note for note in made.notes) == is_package


def test_file_with_settings_and_vocabulary_elsewhere(
    original: _FastBert, tmp_path: Path, tiny_tokenizer: bytes, draw: Callable[[nn.Module], Any]
) -> None:
    vocabulary = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0)._tokenizer.get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "[MASK]"]
    model = draw(type(original)(len(tokens)))
    torch.save(model.state_dict(), tmp_path / "fastbert.bin")
    (tmp_path / "google_vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (tmp_path / "tiny.json").write_text(str(SETTINGS).replace("'", '"'), encoding="utf-8")

    convert_checkpoint(
        tmp_path / "fastbert.bin",
        tmp_path / "checkpoint",
        config=tmp_path / "tiny.json",
        tokenizer=str(tmp_path / "google_vocab.txt"),
    )

    text = TextEncoder((tmp_path / "checkpoint" / "tokenizer.json").read_bytes(), max_length=48, pad_token_id=0)
    good = TextEncoder(tiny_tokenizer, max_length=48, pad_token_id=0).encode(["Good movie"])[0].ids[:-1]
    assert text.encode(["Good movie"])[0].ids == good


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads_num": None}, "heads_num: expected a number, got None; FastBERT's own settings are needed"),
        ({"layers_num": "3"}, "layers_num: expected a number, got '3'"),
        ({"pooling": "max"}, "pooling: expected first, got 'max', which is not supported"),
        ({"embedding": "word"}, "embedding: expected bert, got 'word'"),
        ({"emb_size": 16}, "emb_size: expected hidden_size=32, got 16"),
    ],
)
def test_settings_refused(
    original: _FastBert, save_original: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save_original(original.state_dict(), SETTINGS | changes)

    with pytest.raises(ConfigError) as raised:
        convert_checkpoint(folder, tmp_path / "checkpoint")

    assert f"config.json: {message}" in str(raised.value)


@pytest.mark.parametrize("table", ["position", "word", "segment"])
def test_table_missing(original: _FastBert, save_original: Callable[..., Path], tmp_path: Path, table: str) -> None:
    weights = original.state_dict()
    (name,) = [name for name in weights if name.endswith(f"embedding.{table}_embedding.weight")]
    del weights[name]

    with pytest.raises(ConfigError, match=re.escape(f"1 tensors: {name} is missing, for our encoder.embeddings.")):
        convert_checkpoint(save_original(weights, SETTINGS), tmp_path / "checkpoint")


def test_tokenizer_without_its_special_tokens(
    original: _FastBert, save_original: Callable[..., Path], tmp_path: Path, tiny_tokenizer: bytes
) -> None:
    folder = save_original(original.state_dict(), SETTINGS)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer.replace(b"[SEP]", b"<sep>"))

    with pytest.raises(ConfigError, match=r"the tokenizer has no \[SEP\]"):
        convert_checkpoint(folder, tmp_path / "checkpoint")
