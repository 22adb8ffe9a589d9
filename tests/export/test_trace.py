import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn

from edgebert.encoders._blocks import EncoderConfig
from edgebert.export.trace import graph_outputs, sample, trace_module
from edgebert.methods._program import Pooling


class _Dropped(nn.Module):
    """Pooling behind a dropout that would zero everything in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)
        self.pooling = Pooling("mean", 32)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.dropout(hidden), attention_mask)


def test_trace_module_of_one_in_training(tiny_encoder_config: EncoderConfig) -> None:
    module = _Dropped().train()
    module.pooling.eval()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = trace_module(module, ("hidden", "attention_mask"), ("pooled",), config=tiny_encoder_config, opset=23)

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    hidden = np.random.default_rng(0).normal(size=(5, 3, 32)).astype(np.float32)
    (pooled,) = session.run(None, {"hidden": hidden, "attention_mask": np.ones((5, 3), np.int64)})
    assert np.abs(pooled - hidden.mean(axis=1)).max() <= 1e-5
    assert (module.training, module.dropout.training, module.pooling.training) == (True, True, False)


def test_graph_outputs_differ_from_inputs() -> None:
    assert graph_outputs(("hidden", "attention_mask"), ("hidden", "logits")) == ["hidden_out", "logits"]


def test_sample_shapes(tiny_encoder_config: EncoderConfig) -> None:
    shapes = {name: sample(name, tiny_encoder_config) for name in ("hidden", "attention_mask", "input_ids")}

    assert {name: (tuple(value.shape), value.dtype) for name, value in shapes.items()} == {
        "hidden": ((2, 8, 32), torch.float32),
        "attention_mask": ((2, 8), torch.int64),
        "input_ids": ((2, 8), torch.int64),
    }
