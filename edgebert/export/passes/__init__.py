"""Clean-ups of exported graphs: one file each, applied in this order."""

from __future__ import annotations

from typing import NamedTuple

import onnx


class PassResult(NamedTuple):
    """A graph after a pass, and whether the pass changed anything."""

    model: onnx.ModelProto
    modified: bool


def apply_passes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Applies every pass, in order, and checks the result."""
    from edgebert.export.passes import heads_inside, residual_sums, strip_metadata

    for apply in (heads_inside.apply, residual_sums.apply, strip_metadata.apply):
        model = apply(model).model
    onnx.checker.check_model(model)
    return model
