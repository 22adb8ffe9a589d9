"""What the tests of all namings share: an original on disk, and the road from it to the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from edgebert.bundle import open_bundle
from edgebert.checkpoint import load_checkpoint
from edgebert.convert import Conversion, convert_checkpoint
from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._checkpoint import settings_of
from edgebert.export import export_model
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference
from edgebert.runtime.model import EdgeModel
from edgebert.text import Text, TextEncoder, Values


class Original(Protocol):
    """A model as its authors published it, with random weights."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def answers(self, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        """Returns the logits after every layer, each [rows, labels]."""


@pytest.fixture(scope="session")
def bert_config(tiny_encoder_config: EncoderConfig) -> transformers.BertConfig:
    """The shape of the originals that are built on BERT: 3 layers of width 32."""
    return transformers.BertConfig(**settings_of(tiny_encoder_config), attn_implementation="eager")


@pytest.fixture(scope="session")
def draw() -> Callable[[nn.Module], nn.Module]:
    """Draws all parameters so large that rows and layers differ, and no part is invisible to a comparison."""

    def draw_all(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                is_scale = name.endswith("gamma") or ("norm" in name.lower() and name.endswith("weight"))
                size = 2.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.2
                parameter.copy_(1 + 0.2 * noise if is_scale else size * noise)
        return module.eval()

    return draw_all


@pytest.fixture
def save_original(tmp_path: Path, tiny_tokenizer: bytes) -> Callable[..., Path]:
    """Writes an original's tensors, settings and tokenizer into a folder, in one of the formats."""

    def save(
        weights: dict[str, Tensor], settings: dict[str, Any], *, form: str = "bin", with_tokenizer: bool = True
    ) -> Path:
        folder = tmp_path / "original"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        if form == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        else:
            torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
        if with_tokenizer:
            (folder / "tokenizer.json").write_bytes(tiny_tokenizer)
        return folder

    return save


@dataclass(frozen=True)
class Road:
    """An original, what became of it, and the same texts for both.

    Attributes:
        original: The published model.
        conversion: What the conversion says.
        checkpoint: Our checkpoint's folder.
        bundle: The bundle exported from it.
        text: The bundle's tokenizer.
    """

    original: Original
    conversion: Conversion
    checkpoint: Path
    bundle: Path
    text: TextEncoder

    def check_exits(self, texts: list[Text], *, tolerance: float = 1e-4) -> None:
        """Holds the logits after every layer, in one padded batch, against the original's."""
        values = self.text.pad(self.text.encode(texts))
        batch = Batch(**{name: torch.from_numpy(value) for name, value in values.items()})
        model: Any = load_checkpoint(self.checkpoint).model
        ours = run_reference(model.eval().steps(), batch)[0]
        theirs = self._answers(values)
        assert len(ours) == len(theirs)
        for given, expected in zip(ours, theirs, strict=True):
            assert given.outputs["logits"] == pytest.approx(expected, abs=tolerance)
            assert np.ptp(expected, axis=0).max() > 0.1

    def check_run(self, texts: list[Text], stops: Callable[[list[NDArray[np.float64]]], bool]) -> None:
        """Holds the default policy of the bundle, in batches, against the rule on the original's rows, one by one."""
        encoded = self.text.encode(texts)
        layers, scores = [], []
        for row in encoded:
            exits = [softmax(logits[0]) for logits in self._answers(self.text.pad([row]))]
            layers.append(next((n for n in range(1, len(exits)) if stops(exits[:n])), len(exits)))
            scores.append(exits[layers[-1] - 1])
        with EdgeModel.from_pretrained(self.bundle, threads=1) as model:
            outcome = model.run_encoded(encoded, batch_size=7)
        assert outcome.exit_layer.tolist() == layers
        assert np.exp(outcome.scores) / np.exp(outcome.scores).sum(1, keepdims=True) == pytest.approx(
            np.stack(scores), abs=1e-4
        )
        assert len(set(layers)) > 1

    @torch.no_grad()
    def _answers(self, values: Values) -> list[NDArray[np.float64]]:
        given = [torch.from_numpy(values[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]
        return [logits.double().numpy() for logits in self.original.answers(*given)]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


@pytest.fixture
def make_road(tmp_path: Path) -> Callable[..., Road]:
    """Converts a saved original, exports it, and opens both."""

    def make(original: Original, source: Path, **options: Any) -> Road:
        checkpoint = tmp_path / "checkpoint"
        conversion = convert_checkpoint(source, checkpoint, **options)
        bundle = export_model(checkpoint, tmp_path / "bundle", overrides={"verify_samples": 8}).path
        manifest = open_bundle(bundle).manifest
        text = TextEncoder((bundle / "tokenizer.json").read_bytes(), max_length=48, pad_token_id=0)
        assert manifest.method == conversion.checkpoint.facts.config.method_name
        return Road(original, conversion, checkpoint, bundle, text)

    return make
