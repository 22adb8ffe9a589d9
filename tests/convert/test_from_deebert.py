"""DeeBERT: an original built on transformers' BERT under the published names, and the road from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from edgebert.convert import convert_checkpoint, deebert
from edgebert.errors import ConfigError


class _Highway(nn.Module):
    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.classifier = nn.Linear(width, labels)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.pooler["dense"](hidden[:, 0])))


class _DeeBert(nn.Module):
    def __init__(self, config: transformers.BertConfig, labels: int = 3) -> None:
        super().__init__()
        self.bert = transformers.BertModel(config)
        layers = range(config.num_hidden_layers)
        self.bert.encoder.highway = nn.ModuleList(_Highway(config.hidden_size, labels) for _ in layers)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def answers(self, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        out = self.bert(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
        early = [highway(x) for highway, x in zip(self.bert.encoder.highway, out.hidden_states[1:-1], strict=False)]
        return [*early, self.classifier(out.pooler_output)]


@pytest.fixture
def original(bert_config: transformers.BertConfig, draw: Callable[[nn.Module], Any]) -> _DeeBert:
    return draw(_DeeBert(bert_config))


def _weights(original: nn.Module) -> dict[str, Tensor]:
    """The tensors as the old code saves them, with its buffer."""
    return {**original.state_dict(), "bert.embeddings.position_ids": torch.arange(64)[None, :]}


def test_deebert_becomes_deebert(
    original: _DeeBert,
    save_original: Callable[..., Path],
    make_road: Callable[..., Any],
    texts: list[str],
    bert_config: transformers.BertConfig,
) -> None:
    settings = {**bert_config.to_diff_dict(), "id2label": {"1": "neutral", "0": "bad", "2": "good"}}

    road = make_road(original, save_original(_weights(original), settings))

    facts = road.conversion.checkpoint.facts
    assert road.conversion.naming == "deebert"
    assert facts.config.method == {"name": "deebert", "pool": "cls"}
    assert facts.labels == ("bad", "neutral", "good")
    assert facts.operating_points["default"].knobs == {"threshold": 0.3, "scale": "nats"}
    assert set(road.conversion.ignored) == {
        "bert.embeddings.position_ids",
        *(
            f"bert.encoder.highway.2.{part}.{kind}"
            for part in ("pooler.dense", "classifier")
            for kind in ("weight", "bias")
        ),
    }
    road.check_exits([*texts[:20], ("a good movie", "not a bad one at all")])
    road.check_run(texts[:40], lambda exits: -(exits[-1] * np.log(exits[-1])).sum() < 0.3)


def test_roberta_names_are_recognised() -> None:
    assert deebert.recognises(["roberta.encoder.highway.0.classifier.weight"])
    assert not deebert.recognises(["roberta.encoder.layer.0.output.dense.weight", "classifier.weight"])


def test_one_label_refused(
    bert_config: transformers.BertConfig, save_original: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_original(
        _DeeBert(bert_config, labels=1).state_dict(), bert_config.to_diff_dict() | {"id2label": {"0": "x"}}
    )

    with pytest.raises(ConfigError, match=r"regression.*its exits stop by entropy"):
        convert_checkpoint(folder, tmp_path / "checkpoint")


@pytest.mark.parametrize("layers", [None, "3", 0])
def test_layers_not_said(
    original: _DeeBert,
    bert_config: transformers.BertConfig,
    save_original: Callable[..., Path],
    tmp_path: Path,
    layers: object,
) -> None:
    folder = save_original(_weights(original), bert_config.to_diff_dict() | {"num_hidden_layers": layers})

    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers: expected a number of 1 or more, got"):
        convert_checkpoint(folder, tmp_path / "checkpoint")
