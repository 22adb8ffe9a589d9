"""PABEE: an original built on transformers' BERT under the published names, and the road from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from edgebert.checkpoint import load_checkpoint
from edgebert.convert import convert_checkpoint, pabee
from edgebert.methods._program import Batch
from edgebert.methods._reference import run_reference


class _Pabee(nn.Module):
    def __init__(self, config: transformers.BertConfig, labels: int = 3) -> None:
        super().__init__()
        self.bert = transformers.BertModel(config)
        layers = range(config.num_hidden_layers)
        self.classifiers = nn.ModuleList(nn.Linear(config.hidden_size, labels) for _ in layers)

    def answers(self, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        out = self.bert(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
        pairs = zip(self.classifiers, out.hidden_states[1:], strict=True)
        return [classifier(self.bert.pooler(x)) for classifier, x in pairs]


def _same_three_times_more(exits: list[NDArray[np.float64]]) -> bool:
    labels = [int(exit_.argmax()) for exit_ in exits]
    return len(labels) > 3 and len(set(labels[-4:])) == 1


def test_pabee_becomes_pabee(
    bert_config: transformers.BertConfig,
    draw: Callable[[nn.Module], Any],
    save_original: Callable[..., Path],
    make_road: Callable[..., Any],
    texts: list[str],
) -> None:
    config = transformers.BertConfig(**{**bert_config.to_diff_dict(), "num_hidden_layers": 6})
    original = draw(_Pabee(config))

    road = make_road(original, save_original(original.state_dict(), config.to_diff_dict()))

    facts = road.conversion.checkpoint.facts
    assert road.conversion.naming == "pabee"
    assert facts.config.method == {"name": "pabee", "pool": "cls", "shared_pooler": True}
    assert facts.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert facts.operating_points["default"].policy == "patience"
    assert road.conversion.ignored == {}
    road.check_exits([*texts[:20], ("a good movie", "not a bad one at all")])
    road.check_run(texts[:40], _same_three_times_more)


def test_one_label_is_regression(
    bert_config: transformers.BertConfig,
    draw: Callable[[nn.Module], Any],
    save_original: Callable[..., Path],
    tmp_path: Path,
) -> None:
    original = draw(_Pabee(bert_config, labels=1))
    folder = save_original(original.state_dict(), bert_config.to_diff_dict() | {"id2label": {"0": "similarity"}})
    ids, mask = torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)

    made = convert_checkpoint(folder, tmp_path / "checkpoint")

    model: Any = load_checkpoint(tmp_path / "checkpoint").model
    assert made.checkpoint.facts.config.train.task == "regression"
    assert made.checkpoint.facts.labels == ("similarity",)
    with torch.no_grad():
        theirs = original.answers(ids, mask, torch.zeros_like(ids))
    for given, expected in zip(
        run_reference(model.eval().steps(), Batch(input_ids=ids, attention_mask=mask))[0], theirs, strict=True
    ):
        assert given.outputs["logits"] == pytest.approx(expected.numpy(), abs=2e-5)


def test_albert_names_are_recognised() -> None:
    assert pabee.recognises(["albert.pooler.weight", "classifiers.0.weight"])
    assert not pabee.recognises(["elasticbert.encoder.pooler.0.dense.weight", "classifiers.0.weight"])
