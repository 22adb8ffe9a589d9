"""Quantizes products with Intel Neural Compressor (its ONNX part, in versions before 3.8).

It searches where the default backend only measures: given a drop that must be kept, it tries other settings for each
product of a graph until the metric of the whole bundle is met, and gives up on that graph alone if none is. It also has
SmoothQuant, and rounds to nearest for 4-bit weights. Its operators for `static` are those of the QOperator form.

It searches from the ends: where all products in integers lose too much, it first gives up a graph's first and last one,
and may keep them so beside the one that was bad.

It is told to leave alone what it would spoil: the standard `Attention`, which it takes for an older operator of the
same name; embedding tables, which have a scale for each row here; and the small products that decide.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from edgebert.errors import ConfigError, EdgeBertError, require
from edgebert.quantize._graphs import find_products
from edgebert.quantize._recipe import Calibration, Goal, Need, Recipe
from edgebert.text import Values

NEEDS: Need = "samples"
TUNES = True
SMOOTHS = True

MOST_TRIALS = 12
"""Settings tried for one graph."""

_ROUNDING = 1e-9
"""A rounding error of the metric counts for nothing."""

_QUANTIZED = ("MatMul", "Gemm")
_FLOAT = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
_INT8_COMPUTE = 4
_MOST_ROWS = 64


def check() -> None:
    """Raises MissingExtraError where Neural Compressor, or an onnx that it can use, is not installed."""
    _library()


def quantize_graph(
    model: onnx.ModelProto, recipe: Recipe, calibration: Calibration | None, goal: Goal | None
) -> onnx.ModelProto | None:
    """Returns the graph with its products quantized; None where it has none, or no form of it meets the goal."""
    if recipe.mode == "weight-only" and recipe.bits != 4:
        raise ConfigError("backend neural_compressor has weight-only in int4 alone; use the backend onnxruntime.")
    products = find_products(model)
    if not products:
        return None
    wanted = {product.node.output[0] for product in products}
    # It packs the zero points of an odd number of blocks in another order than ONNX Runtime reads them in.
    is_odd = any(-(-len(product.values) // recipe.block_size) % 2 for product in products)
    named = _named(model)
    kept = [node for node in named.graph.node if node.output[0] not in wanted]
    library = _library()
    with _quietly(library):
        made = library.quantization.fit(
            named,
            _settings(library, recipe, kept, goal, symmetric=is_odd),
            calib_dataloader=None if calibration is None else _Samples(calibration.samples, alike=recipe.smooth_quant),
            eval_func=None if goal is None else lambda candidate: goal.metric(_tidy(candidate, model)),
        )
    if made is None and goal is None:
        raise EdgeBertError("Neural Compressor failed on this graph; set EDGEBERT_DEBUG=1 and look at its log.")
    return None if made is None else _tidy(made.model, model)


def _settings(
    library: ModuleType, recipe: Recipe, kept: Sequence[onnx.NodeProto], goal: Goal | None, *, symmetric: bool
) -> Any:
    scheme = "per_channel" if recipe.per_channel else "per_tensor"
    types: dict[str, Any] = {node.op_type: _FLOAT for node in kept if node.op_type not in _QUANTIZED}
    # It makes a MatMul of a Gemm first, and gives that another name.
    names = {node.name + end: _FLOAT for node in kept if node.op_type in _QUANTIZED for end in ("", "_MatMul")}
    options: dict[str, Any] = {"recipes": {"graph_optimization_level": "DISABLE_ALL"}}
    if recipe.mode == "weight-only":
        kind = "sym" if symmetric else "asym"
        weights = {"bits": 4, "algorithm": ["RTN"], "scheme": [kind], "group_size": recipe.block_size}
        types["MatMul"] = {"weight": weights}
    else:
        types |= {name: {"weight": {"granularity": [scheme]}} for name in _QUANTIZED}
        options["reduce_range"] = recipe.reduce_range
    if recipe.smooth_quant:
        options["recipes"] |= {"smooth_quant": True, "smooth_quant_args": {"alpha": 0.5}}
    if goal is not None:
        config = library.config
        options["accuracy_criterion"] = config.AccuracyCriterion(
            criterion="absolute",
            tolerable_loss=max(goal.most_lost + _ROUNDING, 1e-6),  # it takes no 0
        )
        options["tuning_criterion"] = config.TuningCriterion(max_trials=MOST_TRIALS)
    approach = {"weight-only": "weight_only"}.get(recipe.mode, recipe.mode)
    return library.PostTrainingQuantConfig(approach=approach, op_type_dict=types, op_name_dict=names, **options)


class _Samples:
    """Recorded inputs, as the library reads them: batches, each with a label that nobody looks at.

    SmoothQuant stacks what it sees, so that all batches must be alike: single rows of as many tokens.
    """

    batch_size = 1

    def __init__(self, samples: Sequence[Values], *, alike: bool) -> None:
        self._samples = _alike(samples) if alike else samples

    def __iter__(self) -> Iterator[tuple[Values, None]]:
        return ((sample, None) for sample in self._samples)


def _alike(samples: Sequence[Values]) -> list[Values]:
    """Returns the rows one by one, filled up to the longest with their last token, masked as padding."""
    longest = max((sample["attention_mask"].shape[1] for sample in samples if "attention_mask" in sample), default=0)
    rows = []
    for sample in samples:
        shape = sample["attention_mask"].shape if "attention_mask" in sample else None
        for place in range(min(len(values) for values in sample.values())):
            row = {name: values[place : place + 1] for name, values in sample.items()}
            for name, values in sample.items():
                if shape is not None and values.shape[:2] == shape:
                    after = [(0, 0), (0, longest - shape[1]), *[(0, 0)] * (values.ndim - 2)]
                    is_mask = name == "attention_mask"
                    row[name] = np.pad(row[name], after) if is_mask else np.pad(row[name], after, mode="edge")
            rows.append(row)
    return rows[:_MOST_ROWS]


def _library() -> ModuleType:
    """Imports the library, which takes seconds.

    It warns of what it uses itself (`pkg_resources`, old names of onnx): nothing a user could mend.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("neural_compressor.quantization", "neural_compressor.config"):
            require(module, extra="neural-compressor", purpose="--backend neural_compressor")
        return require("neural_compressor", extra="neural-compressor", purpose="--backend neural_compressor")


@contextlib.contextmanager
def _quietly(library: ModuleType) -> Iterator[None]:
    """Keeps the library's logs and bars off the terminal, and its history out of the working directory."""
    logger = logging.getLogger("neural_compressor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", module=r"neural_compressor\.")
            library.set_workspace(folder)
            yield
    finally:
        logger.setLevel(level)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy whose nodes all have names, by which the library tells them apart."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for number, node in enumerate(copy.graph.node):
        node.name = f"node_{number}"
    return copy


def _tidy(made: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of what the library made without its traces, in one order, with the domains it uses alone."""
    model = onnx.ModelProto.FromString(made.SerializeToString())
    for name in ("producer_version", "domain", "doc_string", "metadata_props", "model_version"):
        model.ClearField(name)
    model.producer_name, model.ir_version = source.producer_name, source.ir_version
    graph = model.graph
    graph.name = source.graph.name
    for name in ("doc_string", "value_info", "input", "output"):
        graph.ClearField(name)
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    for node in graph.node:
        node.ClearField("doc_string")
        if node.op_type == "MatMulNBits":
            others = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            level = onnx.helper.make_attribute("accuracy_level", _INT8_COMPUTE)
            attributes = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in [*others, level]]
            node.ClearField("attribute")
            node.attribute.extend(attributes)
    constants = sorted(graph.initializer, key=lambda constant: constant.name)
    copies = [onnx.TensorProto.FromString(constant.SerializeToString()) for constant in constants]
    graph.ClearField("initializer")
    graph.initializer.extend(copies)
    used = {node.domain for node in graph.node} | {""}
    imports = [onnx.helper.make_opsetid(e.domain, e.version) for e in model.opset_import if e.domain in used]
    model.ClearField("opset_import")
    model.opset_import.extend(sorted(imports, key=lambda entry: entry.domain))
    return model
