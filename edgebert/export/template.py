"""Graphs of modules that differ in their weights alone: traced once, then filled with each one's weights.

Tracing takes a second or more for every graph, whatever its size, and the layers of an encoder are all alike. A copy
with random weights is traced, its initializers are found again among those weights, and the result serves every module
of the same structure. Where an initializer cannot be told apart from what was computed out of weights, nothing is
shared. Export compares every graph with its own module all the same.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Place:
    """Where an initializer's values come from.

    Attributes:
        initializer: Its number in the graph.
        weight: The name of a parameter or buffer.
        is_transposed: Whether the graph holds it transposed.
    """

    initializer: int
    weight: str
    is_transposed: bool


class Template:
    """A graph without weights."""

    def __init__(self, model: onnx.ModelProto, places: list[Place]) -> None:
        self.model = model
        self.places = places
        for place in places:
            model.graph.initializer[place.initializer].ClearField("raw_data")

    def fill(self, module: nn.Module) -> onnx.ModelProto:
        """Returns the graph with a module's weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        weights = _weights(module)
        for place in self.places:
            empty = model.graph.initializer[place.initializer]
            value = weights[place.weight].T if place.is_transposed else weights[place.weight]
            empty.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), empty.name))
        return model


class Templates:
    """The graphs traced so far, by structure of the module and whatever else the caller's trace depends on."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Template | None] = {}

    def make(
        self, module: nn.Module, options: Hashable, trace: Callable[[nn.Module], onnx.ModelProto]
    ) -> onnx.ModelProto:
        """Returns a module's graph.

        Args:
            module: The module.
            options: What else the graph depends on.
            trace: Makes a module's graph; its weights become initializers, as they are or transposed.
        """
        key = (structure(module), options)
        if key not in self._known:
            self._known[key] = _template(module, trace)
        template = self._known[key]
        return trace(module) if template is None else template.fill(module)


@lru_cache(maxsize=1)
def shared_templates() -> Templates:
    """Returns the templates of this process; they hold no weights."""
    return Templates()


def structure(value: Any, seen: dict[int, int] | None = None) -> Hashable:
    """Returns what is equal for modules that differ in the values of their weights alone."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        return "tensor", seen.setdefault(id(value), len(seen)), value.dtype, tuple(value.shape)
    if isinstance(value, nn.Module):
        inner = {name: part for name, part in vars(value).items() if name != "training"}
        return type(value), structure(inner, seen)
    if isinstance(value, msgspec.Struct):
        return type(value), structure(msgspec.structs.asdict(value), seen)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), structure({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, seen)
    if isinstance(value, Mapping):
        return tuple((name, structure(part, seen)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(structure(part, seen) for part in value)
    if isinstance(value, set):
        return frozenset(value)
    return (type(value), value) if isinstance(value, Hashable) else object()


def _template(module: nn.Module, trace: Callable[[nn.Module], onnx.ModelProto]) -> Template | None:
    """Traces a copy with random weights; None where the graph's initializers are not all explained by them."""
    twin = copy.deepcopy(module)
    tensors = [*twin.parameters(), *twin.buffers()]
    if not all(tensor.is_floating_point() for tensor in tensors):
        return None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors:
            tensor.uniform_(0.5, 1.5, generator=generator)
    model = trace(twin)
    weights = _weights(twin)
    places = []
    for number, initializer in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(initializer)
        place = _find(number, values, weights)
        if place is not None:
            places.append(place)
        elif values.dtype.kind == "f" and values.size > 1:
            return None
    return Template(model, places)


def _find(number: int, values: NDArray[Any], weights: Weights) -> Place | None:
    for name, weight in weights.items():
        if np.array_equal(values, weight):
            return Place(number, name, False)
        if weight.ndim == 2 and np.array_equal(values, weight.T):
            return Place(number, name, True)
    return None


def _weights(module: nn.Module) -> Weights:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}
