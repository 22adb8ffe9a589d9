"""The only place that makes ONNX Runtime sessions.

Twelve sessions with a spinning thread pool each are many times slower than one, and twelve arenas hold twelve times
the memory. So pools do not spin, and all our sessions share one arena. One thread pool for all would do as well, but
once a process has it, ONNX Runtime refuses every session that wants its own: models with another number of threads,
and whatever else in the process uses ONNX Runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgebert.errors import BundleError, ConfigError, MissingExtraError, suggestion
from edgebert.text import Values

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_lock = threading.Lock()
_has_arena = False


class Graph:
    """One graph of a bundle, ready to run. Safe to run from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph.

        Args:
            values: Arrays by name; those that are inputs of the graph are read.
            names: What to call the outputs, in the graph's order.
        """
        outputs = self._session.run(self.outputs, {name: values[name] for name in self.inputs})
        return dict(zip(names, outputs, strict=True))


class LateGraph(Graph):
    """A graph that is loaded when it is first run, for those that a device may never need."""

    def __init__(self, load: Callable[[], Graph]) -> None:
        self._load_graph = load
        self._loading = threading.Lock()
        self._graph: Graph | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether it was needed yet."""
        return self._graph is not None

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph; see `Graph.run`.

        Raises:
            BundleError: Its file was changed or removed since the bundle was opened.
        """
        return self.load().run(values, names)

    def load(self) -> Graph:
        """Loads the graph now, unless that was done, and returns it.

        Raises:
            BundleError: ONNX Runtime cannot load it, or its file was changed or removed since the bundle was opened.
        """
        with self._loading:
            self._graph = self._graph or self._load_graph()
            return self._graph


def provider_name(name: str) -> str:
    """Returns ONNX Runtime's name of an execution provider, given in either spelling.

    Raises:
        ConfigError: There is no such provider.
        MissingExtraError: The installed onnxruntime does not have it.
    """
    full = PROVIDERS.get(name.lower(), name)
    if full not in PROVIDERS.values():
        raise ConfigError(f"unknown provider {name!r}.{suggestion(name, PROVIDERS)}")
    if full not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            f"provider {name}: this onnxruntime has only {', '.join(onnxruntime.get_available_providers())}; "
            "install onnxruntime-gpu in its place."
        )
    return full


def make_graph(
    model: bytes,
    *,
    name: str,
    threads: int,
    provider: str = "cpu",
    session_options: onnxruntime.SessionOptions | None = None,
) -> Graph:
    """Loads a graph.

    Args:
        model: The bytes of an ONNX file.
        name: What messages call it.
        threads: Threads inside an operator.
        provider: `cpu` or `cuda`, or ONNX Runtime's name of it.
        session_options: Options to use instead of ours; `threads` is then not looked at.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        MissingExtraError: The provider is not there, or would silently fall back to another.
    """
    full = provider_name(provider)
    options = session_options or _options(threads)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[full], enable_fallback=0)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{name}: ONNX Runtime cannot load it: {reason}") from error
    if session.get_providers()[0] != full:
        raise MissingExtraError(f"{name}: asked for {full}, ONNX Runtime gave {session.get_providers()[0]}.")
    return Graph(session)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # lengths and batches vary: a pattern would be planned anew for each
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _make_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _make_arena() -> None:
    """Makes the shared arena on the first call."""
    global _has_arena
    with _lock:
        if not _has_arena:
            memory = onnxruntime.OrtMemoryInfo(
                "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
            )
            onnxruntime.create_and_register_allocator(memory, None)
            _has_arena = True


def as_input(array: NDArray[Any]) -> NDArray[np.int64]:
    """Returns ids or a mask as the int64 [rows, tokens] that graphs read; one row may come without its axis."""
    given = np.ascontiguousarray(array, np.int64)
    return given[None, :] if given.ndim == 1 else given
