"""The whole model beside the split graphs, as libraries of Hugging Face open it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from edgebert.bundle import open_bundle
from edgebert.runtime.model import EdgeModel


def test_config_names_the_encoder_and_the_labels(plain_bundle: Path, dact_bundle: Path) -> None:
    settings = json.loads(open_bundle(plain_bundle).read("config.json"))

    config = AutoConfig.from_pretrained(plain_bundle)

    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 3, 32)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert not open_bundle(dact_bundle).has("config.json")


# The newest stack is tested without optimum, which it forbids; there this test does not exist.
if importlib.util.find_spec("optimum") is not None:

    def test_optimum_opens_the_bundle(plain_bundle: Path) -> None:
        from optimum.onnxruntime import ORTModelForSequenceClassification

        ids = np.random.default_rng(0).integers(4, 100, (3, 9))
        mask = np.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7])
        theirs = ORTModelForSequenceClassification.from_pretrained(plain_bundle, subfolder="onnx")

        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        logits = theirs(**{name: torch.from_numpy(value) for name, value in given.items()}).logits.numpy()

        with EdgeModel.from_pretrained(plain_bundle, threads=1) as model:
            assert np.abs(logits - model.forward(ids, mask).logits).max() <= 1e-5
        assert theirs.config.id2label[1] == "positive"
