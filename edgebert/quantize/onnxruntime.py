"""Quantizes products for ONNX Runtime's own 8-bit and 4-bit kernels. Needs nothing but onnx.

The graphs keep their shape: every product with a constant matrix becomes the operators that `onnxruntime.quantization`
writes too, everything between products stays float. `dynamic`: `DynamicQuantizeLinear` and `MatMulInteger`, one scale
for a whole batch's activations, measured at every call. `static`: `QuantizeLinear` and `DequantizeLinear` before each
product with scales from calibration, so that a row does not depend on its batch; ONNX Runtime fuses them into one
integer product (a `Gemm` becomes `MatMulInteger`), and what lies between products stays float, which is more exact.
`weight-only`: `MatMulNBits`, smaller but no faster. Weights are symmetric, activations are not: uint8 times int8, which
the x86 kernels are made for. 4-bit weights are rounded to nearest with a zero point for each block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgebert.quantize._graphs import Product, Rewriting, find_products
from edgebert.quantize._recipe import Calibration, Goal, Need, Range, Recipe

NEEDS: Need = "ranges"
TUNES = False
SMOOTHS = False

_INT8_COMPUTE = 4
"""`accuracy_level` at which MatMulNBits multiplies in int8; unset it is 4 to 10 times slower."""

_Write = Callable[[Rewriting, Product], None]
"""Adds the nodes of a quantized product, its bias included."""


def check() -> None:
    """Finds nothing missing: what this backend needs has been imported with it."""


def quantize_graph(
    model: onnx.ModelProto, recipe: Recipe, calibration: Calibration | None, goal: Goal | None
) -> onnx.ModelProto | None:
    """Returns the graph with its products quantized; None where it has none that can be."""
    products = find_products(model)
    write: _Write
    if recipe.mode == "dynamic":
        write = _Dynamic(recipe)
    elif recipe.mode == "static":
        assert calibration is not None
        products = [product for product in products if product.activation in calibration.ranges]
        write = _Static(recipe, calibration.ranges)
    else:
        write = _WeightOnly(recipe)
    if not products:
        return None
    rewriting = Rewriting(model)
    for product in products:
        rewriting.replace(product.node)
        write(rewriting, product)
    return rewriting.finish()


class _Weights:
    """Stores matrices in int8, each once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stored: dict[tuple[str, tuple[int, ...]], tuple[str, str, str]] = {}

    def store(self, rewriting: Rewriting, product: Product) -> tuple[str, str, str]:
        """Returns the names of a matrix's int8 values, their scales and their zero points."""
        key = (product.weight, product.values.shape)
        if key not in self._stored:
            largest = np.abs(product.values).max(axis=0 if self._recipe.per_channel else None)
            scale = np.asarray(largest / np.float32(63 if self._recipe.reduce_range else 127), np.float32)
            scale = np.where(scale == 0, np.float32(1), scale)
            values = np.rint(product.values / scale).astype(np.int8)
            self._stored[key] = (
                rewriting.constant(f"{product.weight}_int8", values),
                rewriting.constant(f"{product.weight}_scale", scale),
                rewriting.constant(f"{product.weight}_zero", np.zeros(scale.shape, np.int8)),
            )
        return self._stored[key]


def _multiply_integers(
    rewriting: Rewriting, product: Product, activation: tuple[str, str, str], weight: tuple[str, str, str]
) -> None:
    """Writes a product of int8 numbers, each side given by its values, scale and zero point, and adds its bias."""
    output = product.node.output[0]
    multiplied = output if product.bias is None else rewriting.name(f"{output}_product")
    names = [rewriting.name(f"{output}_{part}") for part in ("int32", "wide", "unit")]
    rewriting.add("MatMulInteger", [activation[0], weight[0], activation[2], weight[2]], names[0])
    rewriting.add("Cast", [names[0]], names[1], to=TensorProto.FLOAT)
    rewriting.add("Mul", [activation[1], weight[1]], names[2])
    rewriting.add("Mul", [names[1], names[2]], multiplied)
    if product.bias is not None:
        rewriting.add("Add", [multiplied, product.bias], output)


class _Dynamic:
    def __init__(self, recipe: Recipe) -> None:
        self._weights = _Weights(recipe)
        self._measured: dict[str, tuple[str, str, str]] = {}

    def __call__(self, rewriting: Rewriting, product: Product) -> None:
        x = product.activation
        if x not in self._measured:
            quantized, scale, zero = (rewriting.name(f"{x}_{part}") for part in ("uint8", "scale", "zero"))
            rewriting.add("DynamicQuantizeLinear", [x], quantized, scale, zero)
            self._measured[x] = (quantized, scale, zero)
        _multiply_integers(rewriting, product, self._measured[x], self._weights.store(rewriting, product))


class _Static:
    def __init__(self, recipe: Recipe, ranges: dict[str, Range]) -> None:
        self._ranges, self._weights = ranges, _Weights(recipe)
        self._quantized: dict[str, tuple[str, str, str]] = {}
        self._widened: dict[str, str] = {}

    def __call__(self, rewriting: Rewriting, product: Product) -> None:
        x, weight = product.activation, self._weights.store(rewriting, product)
        if x not in self._quantized:
            scale, zero = _scale_and_zero(self._ranges[x])
            constants = (rewriting.constant(f"{x}_scale", scale), rewriting.constant(f"{x}_zero", zero))
            self._quantized[x] = (rewriting.name(f"{x}_uint8"), *constants)
            rewriting.add("QuantizeLinear", [x, *constants], self._quantized[x][0])
        if product.node.op_type == "Gemm":
            # ONNX Runtime fuses a flat product with what follows it before it looks for integers: say so outright.
            _multiply_integers(rewriting, product, self._quantized[x], weight)
            return
        factors = [self._widen(rewriting, self._quantized[x]), self._widen(rewriting, weight)]
        rewriting.add("MatMul", factors, product.node.output[0])

    def _widen(self, rewriting: Rewriting, quantized: tuple[str, str, str]) -> str:
        values = quantized[0]
        if values not in self._widened:
            self._widened[values] = rewriting.name(f"{values}_wide")
            rewriting.add("DequantizeLinear", quantized, self._widened[values], axis=1)
        return self._widened[values]


def _scale_and_zero(seen: Range) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Returns what maps a range, widened to hold 0, onto 0 to 255."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    return np.asarray(scale), np.asarray(np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8))


class _WeightOnly:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stored: dict[tuple[str, tuple[int, ...]], list[str]] = {}

    def __call__(self, rewriting: Rewriting, product: Product) -> None:
        output = product.node.output[0]
        multiplied = output if product.bias is None else rewriting.name(f"{output}_product")
        key = (product.weight, product.values.shape)
        bits, size = self._recipe.bits, self._recipe.block_size
        if key not in self._stored:
            parts = pack_blocks(product.values, bits, size)
            names = (f"{product.weight}_{part}" for part in (f"int{bits}", "scale", "zero"))
            self._stored[key] = [
                rewriting.constant(name, part) for name, part in zip(names, parts, strict=False) if part is not None
            ]
        inputs, outputs = product.values.shape
        rewriting.add(
            "MatMulNBits",
            [product.activation, *self._stored[key]],
            multiplied,
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=size,
            accuracy_level=_INT8_COMPUTE,
        )
        if product.bias is not None:
            rewriting.add("Add", [multiplied, product.bias], output)


def pack_blocks(
    values: NDArray[np.float32], bits: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Rounds a matrix to blocks of few bits, as MatMulNBits stores them.

    Args:
        values: float32 [inputs, outputs].
        bits: 4, with a zero point for each block, or 8, symmetric.
        size: How many inputs share a scale.

    Returns:
        The numbers, uint8 [outputs, blocks, size * bits / 8]; the scales, float32 [outputs, blocks]; and the zero
        points, two to a byte, uint8 [outputs, (blocks + 1) // 2], or None where all are 128.
    """
    inputs, outputs = values.shape
    blocks = -(-inputs // size)
    padded = np.zeros((outputs, blocks * size), np.float32)
    padded[:, :inputs] = values.T
    grouped = padded.reshape(outputs, blocks, size)
    if bits == 8:
        scale = np.abs(grouped).max(axis=2) / np.float32(127)
        scale[scale == 0] = 1
        return (np.rint(grouped / scale[:, :, None]) + 128).astype(np.uint8), scale, None
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    scale = (high - low) / np.float32(15)
    scale[scale == 0] = 1
    zero = np.clip(np.rint(-low / scale), 0, 15)
    rounded = np.clip(np.rint(grouped / scale[:, :, None]) + zero[:, :, None], 0, 15).astype(np.uint8)
    zeros = np.zeros((outputs, blocks + blocks % 2), np.uint8)
    zeros[:, :blocks] = zero
    return _pairs(rounded), scale, _pairs(zeros)


def _pairs(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns numbers of 4 bits two to a byte, the first in the low half."""
    packed: NDArray[np.uint8] = numbers[..., 0::2] | (numbers[..., 1::2] << 4).astype(np.uint8)
    return packed
