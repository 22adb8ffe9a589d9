"""ElasticBERT: an original built on transformers' BERT under the published names, and the road from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from edgebert.checkpoint import load_checkpoint
from edgebert.convert import convert_checkpoint
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference


class _ElasticBert(nn.Module):
    def __init__(self, config: transformers.BertConfig, labels: int = 3) -> None:
        super().__init__()
        self.elasticbert = transformers.BertModel(config, add_pooling_layer=False)
        layers, width = range(config.num_hidden_layers), config.hidden_size
        self.elasticbert.encoder.pooler = nn.ModuleList(
            nn.ModuleDict({"dense": nn.Linear(width, width)}) for _ in layers
        )
        self.classifiers = nn.ModuleList(nn.Linear(width, labels) for _ in layers)

    def answers(self, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        out = self.elasticbert(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
        exits = zip(self.elasticbert.encoder.pooler, self.classifiers, out.hidden_states[1:], strict=True)
        return [classifier(torch.tanh(pooler["dense"](x[:, 0]))) for pooler, classifier, x in exits]


def _settings(config: transformers.BertConfig) -> dict[str, Any]:
    return {**config.to_diff_dict(), "model_type": "elasticbert", "num_output_layers": 3, "max_output_layers": 3}


def test_elasticbert_becomes_deebert(
    bert_config: transformers.BertConfig,
    draw: Callable[[nn.Module], Any],
    save_original: Callable[..., Path],
    make_road: Callable[..., Any],
    texts: list[str],
) -> None:
    original = draw(_ElasticBert(bert_config))
    weights = {**original.state_dict(), "elasticbert.embeddings.position_ids": torch.arange(64)[None, :]}

    road = make_road(original, save_original(weights, _settings(bert_config)))

    assert road.conversion.naming == "elasticbert"
    assert road.conversion.checkpoint.facts.config.method == {"name": "deebert", "pool": "cls"}
    assert set(road.conversion.ignored) == {"elasticbert.embeddings.position_ids"}
    road.check_exits([*texts[:20], ("a good movie", "not a bad one at all")])
    road.check_run(texts[:40], lambda exits: -(exits[-1] * np.log(exits[-1])).sum() < 0.3)


def test_one_label_becomes_pabee(
    bert_config: transformers.BertConfig,
    draw: Callable[[nn.Module], Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
) -> None:
    original = draw(_ElasticBert(bert_config, labels=1))
    folder = save_original(original.state_dict(), _settings(bert_config) | {"id2label": {"0": "similarity"}})
    ids, mask = torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)

    made = convert_checkpoint(folder, tmp_path / "checkpoint")

    model: Any = load_checkpoint(tmp_path / "checkpoint").model
    assert made.checkpoint.facts.config.method == {"name": "pabee", "pool": "cls", "shared_pooler": False}
    assert made.checkpoint.facts.config.train.task == "regression"
    with torch.no_grad():
        theirs = original.answers(ids, mask, torch.zeros_like(ids))
    for given, expected in zip(
        run_reference(model.eval().steps(), Batch(input_ids=ids, attention_mask=mask))[0], theirs, strict=True
    ):
        assert given.outputs["logits"] == pytest.approx(expected.numpy(), abs=2e-5)
