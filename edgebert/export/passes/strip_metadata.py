"""Removes what does not compute: doc strings, stack traces, exporter notes, shapes of inner values.

Afterwards the same weights give the same bytes, and a graph says nothing about the machine it was made on.
"""

from __future__ import annotations

import onnx

from edgebert.export.passes import PassResult


def apply(model: onnx.ModelProto) -> PassResult:
    """Strips a copy of the model."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    stripped.producer_name = "edgebert"
    for field in ("producer_version", "domain", "doc_string", "metadata_props", "model_version"):
        stripped.ClearField(field)
    graph = stripped.graph
    graph.name = "graph"
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return PassResult(stripped, stripped != model)
