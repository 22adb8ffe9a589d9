"""One torch module becomes one ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from edgebert.bundle.manifest import STATES
from edgebert.encoders._blocks import EncoderConfig
from edgebert.export.passes import apply_passes
from edgebert.export.template import shared_templates

BATCH, TOKENS = 2, 8
"""Size of the examples a module is traced with."""


def trace_module(
    module: nn.Module,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    config: EncoderConfig,
    opset: int,
    widths: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Exports a module with free batch size and length; modules that differ in their weights alone are traced once.

    Args:
        module: Takes the inputs in order and returns the outputs in order.
        inputs: Names of values; each name fixes shape and type, see `sample`.
        outputs: Names of values. One that is an input too gets `_out` appended: names in a graph are unique.
        config: The encoder's shape.
        opset: ONNX operator set.
        widths: Last axis of the inputs that are float [batch, tokens, width] and no hidden states, and of choices,
            bool [batch, width].
    """
    arguments = tuple(
        _sample_of_width(name, widths[name]) if widths and name in widths else sample(name, config) for name in inputs
    )
    shapes = tuple((tuple(value.shape), value.dtype) for value in arguments)
    options = (tuple(inputs), tuple(outputs), shapes, opset)
    model = shared_templates().make(
        module, options, lambda twin: apply_passes(as_exported(twin, inputs, outputs, arguments, opset))
    )
    onnx.checker.check_model(model)
    return model


def as_exported(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], arguments: tuple[Tensor, ...], opset: int
) -> onnx.ModelProto:
    """Returns a module's graph as torch's exporter writes it, before any pass.

    Args:
        module: As `trace_module` takes it, like `inputs`, `outputs` and `opset`.
        inputs: Names of values.
        outputs: Names of values.
        arguments: An example of each input.
        opset: ONNX operator set.
    """
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    training = {part: part.training for part in module.modules()}
    module.eval()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Positional(module),
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=graph_outputs(inputs, outputs),
                dynamic_shapes=(
                    tuple({0: batch} if value.dtype == torch.bool else {0: batch, 1: tokens} for value in arguments),
                ),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
        for part, was_training in training.items():
            part.training = was_training
    assert program is not None
    return program.model_proto


class _Positional(nn.Module):
    """Any module, its inputs as one tuple, so that the exporter describes all modules' inputs alike."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Tensor) -> object:
        return self.module(*arguments)


def _sample_of_width(name: str, width: int) -> Tensor:
    if name.endswith("_choice"):
        return torch.ones(BATCH, width, dtype=torch.bool)
    return torch.zeros(BATCH, TOKENS, width)


def graph_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Returns the names a graph gives its outputs."""
    return [f"{name}_out" if name in inputs else name for name in outputs]


def sample(name: str, config: EncoderConfig, batch: int = BATCH, tokens: int = TOKENS) -> Tensor:
    """Returns an example of a value: hidden states, float [batch, tokens, hidden]; others int64 [batch, tokens]."""
    if name in STATES:
        return torch.zeros(batch, tokens, config.hidden_size)
    if name == "attention_mask":
        return torch.ones(batch, tokens, dtype=torch.int64)
    return torch.zeros(batch, tokens, dtype=torch.int64)
