"""Loads the graphs of a bundle: at once or when they are first needed, from the bundle or as they were prepared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime

from edgebert.bundle import Bundle
from edgebert.errors import BundleError
from edgebert.processor import detect_target, saturates
from edgebert.runtime.graphs import Graph, LateGraph, Shelf
from edgebert.runtime.prepared import Prepared
from edgebert.runtime.sessions import make_graph, release_memory

_LOADING_FACTORS = {"embed": 3.0}
_LOADING_FACTOR = 4.5
"""Loading a graph from a bundle was measured to take up to so many times its bytes: these, what ONNX Runtime reads them
into, and what it lays out of that; of embeddings nothing is laid out. Prepared graphs are only mapped."""


def load_graphs(
    bundle: Bundle,
    *,
    threads: int,
    provider: str,
    session_options: onnxruntime.SessionOptions | None,
    prepared: Prepared | None,
    memory_budget_mb: float | None,
) -> tuple[dict[str, Graph], Shelf]:
    """Loads the graphs of a bundle's program.

    Those of layers that are there in two forms are loaded when they are first run; with a budget all are. It warns of
    weights of 8 bits that overflow on this processor.

    Args:
        bundle: The bundle.
        threads: Threads inside an operator.
        provider: A file in `edgebert/runtime/providers`.
        session_options: ONNX Runtime options to use instead of ours.
        prepared: The prepared graphs; None where there are none.
        memory_budget_mb: What the loaded graphs may hold together, in millions of bytes; None: no limit.

    Returns:
        The graphs by path, and the shelf that keeps those that load late.

    Raises:
        BundleError: A file is damaged, or cannot be loaded.
        ConfigError: The budget has no room for one of them.
        MissingExtraError: The provider is not there.
    """
    if provider == "cpu":
        _warn_of_overflow(bundle)
    budget_bytes = None if memory_budget_mb is None else round(memory_budget_mb * 1e6)
    shelf = Shelf(budget_bytes, release_memory)
    program = bundle.manifest.program
    twofold = {step.layer for step in program if step.part == "fused"}
    graphs: dict[str, Graph] = {}

    def make(path: str, model: bytes | Path) -> Graph:
        name = str(bundle.path / path)
        return make_graph(model, name=name, threads=threads, provider=provider, session_options=session_options)

    def load(path: str) -> Graph:
        laid_out = None if prepared is None else prepared.find(path)
        try:
            graph = make(path, laid_out or bundle.read(path))
        except BundleError:
            if prepared is None or laid_out is None or prepared.find(path) is not None:
                raise
            graph = make(path, bundle.read(path))  # another process prepared anew while ONNX Runtime opened the files
        if budget_bytes is not None:
            release_memory()
        return graph

    for step in program:
        if step.graph is None or step.graph in graphs:
            continue
        if budget_bytes is None and not (step.kind == "layer" and step.layer in twofold):
            graphs[step.graph] = load(step.graph)
        else:
            factor = _LOADING_FACTORS.get(step.kind, _LOADING_FACTOR)
            graphs[step.graph] = _late(bundle, step.graph, partial(load, step.graph), prepared, shelf, factor)
    release_memory()
    return graphs, shelf


def _warn_of_overflow(bundle: Bundle) -> None:
    """Warns of weights of 8 bits on a processor that adds their products in 16: sums are cut off, silently."""
    quantization = bundle.manifest.quantization
    if quantization is None or quantization.mode == "weight-only" or quantization.settings.get("reduce_range"):
        return
    if saturates():
        warnings.warn(
            f"{bundle.path}: was quantized for processors with 8-bit dot products, which this one has not: sums may "
            f"overflow. Quantize the fp32 bundle with --target {detect_target()}.",
            RuntimeWarning,
            stacklevel=4,
        )


def _late(
    bundle: Bundle, path: str, load: Callable[[], Graph], prepared: Prepared | None, shelf: Shelf, factor: float
) -> LateGraph:
    if prepared is not None:
        size = loading = prepared.laid_out_bytes(path, bundle.manifest.files[path].bytes)
    else:
        size = len(bundle.read(path))  # a damaged file is refused now, not when it is needed
        loading = round(factor * size)
    return LateGraph(load, shelf=shelf, name=str(bundle.path / path), size_bytes=size, loading_bytes=loading)
