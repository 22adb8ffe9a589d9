from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgebert.encoders._blocks import EncoderConfig, Layer
from edgebert.export.template import Templates, structure
from edgebert.export.trace import trace_module
from edgebert.methods._program import Pooling


class Sum(nn.Module):
    """Adds the sum of two of its vectors, which the exporter works out beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(32))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + (self.first * 2 + self.second)


def _run(model: onnx.ModelProto, hidden: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {"hidden": hidden, "attention_mask": np.ones(hidden.shape[:2], np.int64)}
    (output,) = session.run(None, {value.name: values[value.name] for value in session.get_inputs()})
    return np.asarray(output)


def test_modules_of_one_structure_are_traced_once_and_keep_their_own_weights(
    tiny_encoder_config: EncoderConfig,
) -> None:
    torch.manual_seed(0)
    layers = [Layer(tiny_encoder_config).eval() for _ in range(3)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.normal_()
    traced: list[nn.Module] = []

    def trace(module: nn.Module) -> onnx.ModelProto:
        traced.append(module)
        names = ("hidden", "attention_mask")
        return trace_module(module, names, ("hidden",), config=tiny_encoder_config, opset=23)

    templates = Templates()
    models = [templates.make(layer, "options", trace) for layer in layers]

    assert len(traced) == 1
    hidden = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    mask = torch.ones(2, 5, dtype=torch.int64)
    for layer, model in zip(layers, models, strict=True):
        with torch.no_grad():
            expected = layer(torch.from_numpy(hidden), mask).numpy()
        assert _run(model, hidden) == pytest.approx(expected, abs=1e-4)


def test_what_was_computed_out_of_weights_is_traced_for_every_module(tiny_encoder_config: EncoderConfig) -> None:
    torch.manual_seed(0)
    hidden = np.zeros((1, 2, 32), np.float32)
    for module in (Sum(), Sum()):
        model = trace_module(module, ("hidden",), ("hidden",), config=tiny_encoder_config, opset=23)
        expected = (module.first * 2 + module.second).detach().numpy()
        assert _run(model, hidden)[0, 0] == pytest.approx(expected, abs=1e-6)


def test_structure_is_all_but_the_values(tiny_encoder_config: EncoderConfig) -> None:
    layer = Layer(tiny_encoder_config)
    tied = Layer(tiny_encoder_config)
    tied.attention.key.weight = tied.attention.query.weight

    assert structure(layer) == structure(Layer(tiny_encoder_config).train(not layer.training))
    assert structure(layer) != structure(tied)
    for change in ({"heads": 2}, {"activation": "relu"}, {"norm_epsilon": 1e-5}, {"feed_forward_size": 8}):
        assert structure(layer) != structure(Layer(replace(tiny_encoder_config, **change)))  # type: ignore[arg-type]
    assert structure(Pooling("cls", 32)) != structure(Pooling("mean", 32))
