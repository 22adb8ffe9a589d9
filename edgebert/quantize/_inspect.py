"""Looks at what ONNX Runtime makes of a quantized graph: a weight widened before a float product saves nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime

from edgebert.errors import BundleError, EdgeBertError, QualityError
from edgebert.partial import check_room
from edgebert.quantize._graphs import DOMAINS, find_products
from edgebert.runtime.sessions import make_graph

_FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


def check_graph(model: onnx.ModelProto, data: bytes, *, name: str) -> None:
    """Loads a quantized graph as the runtime will, and refuses leftovers.

    Args:
        model: The graph.
        data: Its bytes.
        name: What messages call it.

    Raises:
        QualityError: ONNX Runtime would widen a quantized weight and multiply in float, or an operator is of a domain
            that a stock ONNX Runtime does not have.
    """
    if others := sorted({node.domain for node in model.graph.node} - set(DOMAINS)):
        raise QualityError(f"{name}: has operators of {', '.join(others)}, which a stock ONNX Runtime does not know.")
    optimized = _as_optimized(data, name)
    allowed = len(find_products(model, fewest_outputs=1)) + len(_of_kind(model, "MatMulNBits"))
    found = leftovers(optimized)
    if len(found) > allowed:
        raise QualityError(
            f"{name}: ONNX Runtime {onnxruntime.__version__} would widen {len(found) - allowed} quantized weights and "
            f"multiply in float ({', '.join(found[:3])}); use mode dynamic, another backend, or a newer onnxruntime."
        )


def leftovers(optimized: onnx.ModelProto) -> list[str]:
    """Returns the products of an optimised graph with a constant matrix that is float or widened first, by output.

    `MatMulNBits` is one of them: newer versions of ONNX Runtime make it of a widened matrix.
    """
    constants = {constant.name for constant in optimized.graph.initializer}
    made_by = {output: node for node in optimized.graph.node for output in node.output}

    def is_constant(value: str) -> bool:
        node = made_by.get(value)
        if node is not None and node.op_type in ("DequantizeLinear", "Transpose", "Cast"):
            return is_constant(node.input[0])
        return value in constants

    products = [node for kind in _FLOAT_PRODUCTS for node in _of_kind(optimized, kind)]
    constant = [node for node in products if is_constant(node.input[1]) and not is_constant(node.input[0])]
    return [node.output[0] for node in [*constant, *_of_kind(optimized, "MatMulNBits")]]


def _of_kind(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def _as_optimized(data: bytes, name: str) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        try:
            make_graph(data, name=name, threads=1, session_options=options)
        except BundleError:
            _check_room(Path(folder), 4 * len(data))  # ONNX Runtime does not say that it could not write
            raise
        return onnx.load(path)


def _check_room(folder: Path, size_bytes: int) -> None:
    try:
        check_room(folder, size_bytes)
    except OSError as error:
        raise EdgeBertError(
            f"{folder.parent}: {error.strerror}; name another place for temporary files (TMPDIR)."
        ) from error
