"""Graphs whose hidden states stay on the device they were made on."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgebert.runtime.sessions import make_options, open_session
from edgebert.text import Values

GATHER = {
    "tensor(float)": (
        "CAgSADqhAQonCgRkYXRhCgRyb3dzEgRtYWRlIgZHYXRoZXIqCwoEYXhpcxgAoAECEgZnYXRoZXJaKgoEZGF0YRIiCiAIARIcCgYS"
        "BHJvd3MKCBIGdG9rZW5zCggSBmhpZGRlbloWCgRyb3dzEg4KDAgHEggKBhIEa2VwdGIqCgRtYWRlEiIKIAgBEhwKBhIEa2VwdAoI"
        "EgZ0b2tlbnMKCBIGaGlkZGVuQgQKABAN"
    ),
    "tensor(float16)": (
        "CAgSADqhAQonCgRkYXRhCgRyb3dzEgRtYWRlIgZHYXRoZXIqCwoEYXhpcxgAoAECEgZnYXRoZXJaKgoEZGF0YRIiCiAIChIcCgYS"
        "BHJvd3MKCBIGdG9rZW5zCggSBmhpZGRlbloWCgRyb3dzEg4KDAgHEggKBhIEa2VwdGIqCgRtYWRlEiIKIAgKEhwKBhIEa2VwdAoI"
        "EgZ0b2tlbnMKCBIGaGlkZGVuQgQKABAN"
    ),
}
"""Graphs that take rows out: `made` = Gather(`data`, `rows`), as base64, by what ONNX Runtime calls the data's type."""

_HIDDEN_RANK = 3

_DEFAULT_STREAM = "1"
"""CUDA's `cudaStreamLegacy`, the stream that copies between host and device are ordered with."""


class DeviceArray:
    """An array on a device, which the engine takes for a NumPy array.

    Rows can be taken out and written, and NumPy's own functions fetch it.
    """

    def __init__(self, value: onnxruntime.OrtValue, device: str) -> None:
        self.value = value
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its numbers."""
        return np.dtype(np.float16 if self.value.data_type() == "tensor(float16)" else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        fetched: NDArray[Any] = self.value.numpy()
        return fetched if dtype is None else fetched.astype(dtype)

    def __getitem__(self, chosen: Any) -> DeviceArray | NDArray[Any]:
        """Takes rows out, on the device where a mask says which; anything else is fetched."""
        if not (isinstance(chosen, np.ndarray) and chosen.dtype == np.bool_ and chosen.ndim == 1):
            return cast(NDArray[Any], np.asarray(self)[chosen])
        session = _gather(self.value.data_type(), self._device)
        binding = session.io_binding()
        binding.bind_ortvalue_input("data", self.value)
        binding.bind_cpu_input("rows", np.flatnonzero(chosen))
        binding.bind_output("made", self._device)
        session.run_with_iobinding(binding)
        return DeviceArray(binding.get_outputs()[0], self._device)

    def __setitem__(self, chosen: Any, made: Any) -> None:
        """Writes rows; the array goes by way of the processor."""
        whole = np.array(self)
        whole[chosen] = np.asarray(made)
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy(whole, self._device, 0)


class DeviceGraph:
    """A graph in an ONNX Runtime session on a device. Safe to run from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        """Takes a session.

        Args:
            session: The session.
            device: ONNX Runtime's name of the device: `cuda`, or `cpu`.
        """
        self._session = session
        self._device = device
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = [value.name for value in session.get_outputs()]
        self._stays = [
            len(value.shape) == _HIDDEN_RANK and value.type in GATHER and isinstance(value.shape[1], str)
            for value in session.get_outputs()
        ]
        self._options = onnxruntime.RunOptions()
        if all(self._stays):  # nothing is read here, so nobody has to wait for it
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph; see `edgebert.runtime.graphs.Graph`. Hidden states come as `DeviceArray`."""
        binding = self._session.io_binding()
        for name in self.inputs:
            value: Any = values[name]
            if isinstance(value, DeviceArray):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, stays in zip(self.outputs, self._stays, strict=True):
            binding.bind_output(name, self._device if stays else "cpu")
        self._session.run_with_iobinding(binding, self._options)
        made = [
            DeviceArray(value, self._device) if stays else value.numpy()
            for value, stays in zip(binding.get_outputs(), self._stays, strict=True)
        ]
        return dict(zip(names, cast(list[NDArray[Any]], made), strict=True))


@functools.cache
def _gather(data_type: str, device: str) -> onnxruntime.InferenceSession:
    """Returns a session that takes rows out on a device."""
    return open_session(base64.b64decode(GATHER[data_type]), "gather", make_options(1), providers_of(device))


def providers_of(device: str) -> list[tuple[str, dict[str, str]]]:
    """Returns the execution provider of a device, with its options."""
    if device == "cpu":
        return [("CPUExecutionProvider", {})]
    return [("CUDAExecutionProvider", {"user_compute_stream": _DEFAULT_STREAM})]
