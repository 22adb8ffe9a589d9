"""The only place that makes ONNX Runtime sessions.

Twelve sessions with a spinning thread pool each are many times slower than one, and twelve arenas hold twelve times
the memory. So pools do not spin, and all our sessions share one arena. One thread pool for all would do as well, but
once a process has it, ONNX Runtime refuses every session that wants its own: models with another number of threads,
and whatever else in the process uses ONNX Runtime.

Where a graph runs is a file in `edgebert/runtime/providers`; the others of this package know nothing of it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgebert import registry
from edgebert.arguments import check_name
from edgebert.errors import BundleError, ConfigError, MissingExtraError, suggestion
from edgebert.runtime.forks import keep_in_child
from edgebert.runtime.graphs import Graph
from edgebert.text import Values

_PROVIDERS = "edgebert.runtime.providers"
_ON_CALLING_THREAD = "CPUExecutionProvider"
"""ONNX Runtime's name of the provider that has no threads of its own beside the pools of a session."""

_lock = threading.Lock()
_has_arena = False


class SessionGraph:
    """A graph in an ONNX Runtime session on the processor."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session  # what `keep_in_child` marks must be there as long as the graph is
        # The session in C++. The one in Python looks at every name and value anew before it runs: 20 microseconds a
        # call (onnxruntime 1.32). What we give it does not vary.
        self._run = getattr(session, "_sess", session).run
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Values:
        """Runs the graph; see `edgebert.runtime.graphs.Graph`."""
        outputs = self._run(self.outputs, {name: values[name] for name in self.inputs}, None)
        return dict(zip(names, outputs, strict=True))


def provider_name(name: str) -> str:
    """Returns the name of a file in `edgebert/runtime/providers`, given it or what ONNX Runtime calls the provider.

    Raises:
        ConfigError: There is no such provider.
        MissingExtraError: It cannot be used here.
    """
    wanted = check_name("provider", name).lower().replace("-", "_")
    known = registry.names(_PROVIDERS)
    if wanted not in known:
        full_names = {registry.load(_PROVIDERS, short).FULL_NAME: short for short in reversed(known)}
        if name not in full_names:
            raise ConfigError(f"unknown provider {name!r}.{suggestion(name, known)}")
        wanted = full_names[name]
    if (missing := registry.load(_PROVIDERS, wanted).missing()) is not None:
        raise MissingExtraError(f"provider {name}: {missing}")
    return wanted


def runs_on_processor(provider: str) -> bool:
    """Says whether a provider, named as `provider_name` takes it, computes on the processor."""
    on_processor: bool = registry.load(_PROVIDERS, provider_name(provider)).ON_PROCESSOR
    return on_processor


def has_threads(threads: int, provider: str, session_options: onnxruntime.SessionOptions | None) -> bool:
    """Says whether graphs that are loaded so compute on other threads than the calling one.

    Args:
        threads: As `make_graph` takes it.
        provider: A file in `edgebert/runtime/providers`.
        session_options: ONNX Runtime options to use instead of ours.
    """
    if registry.load(_PROVIDERS, provider).FULL_NAME != _ON_CALLING_THREAD:
        return True
    return threads != 1 if session_options is None else _has_pools(session_options)


def _has_pools(options: onnxruntime.SessionOptions) -> bool:
    is_parallel: bool = options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    has_pools: bool = options.intra_op_num_threads != 1 or (is_parallel and options.inter_op_num_threads != 1)
    return has_pools


def provider_states() -> dict[str, str | None]:
    """Returns, for each provider, why it cannot be used here; None where it can."""
    return {name: registry.load(_PROVIDERS, name).missing() for name in registry.names(_PROVIDERS)}


def make_graph(
    model: bytes | Path,
    *,
    name: str,
    threads: int,
    provider: str = "cpu",
    session_options: onnxruntime.SessionOptions | None = None,
) -> Graph:
    """Loads a graph.

    Args:
        model: The bytes of an ONNX file, or a graph that `edgebert.runtime.prepared` made.
        name: What messages call it.
        threads: Threads inside an operator.
        provider: A file in `edgebert/runtime/providers`, or ONNX Runtime's name of it.
        session_options: Options to use instead of ours; `threads` is then not looked at.

    Raises:
        BundleError: It cannot be loaded.
        ConfigError: The provider is unknown, or takes no `session_options`.
        MissingExtraError: The provider is not there, or would silently fall back to another.
    """
    made: Graph = registry.load(_PROVIDERS, provider_name(provider)).make(model, name, threads, session_options)
    return made


def open_session(
    model: bytes | Path,
    name: str,
    options: onnxruntime.SessionOptions,
    providers: Sequence[tuple[str, Mapping[str, str]]],
) -> onnxruntime.InferenceSession:
    """Makes a session.

    Args:
        model: The bytes of an ONNX file, or a prepared graph.
        name: What messages call it.
        options: The session's options.
        providers: ONNX Runtime's names of execution providers, with their options; the first is to take the graph.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        MissingExtraError: The first provider would silently be replaced by another.
    """
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{name}: ONNX Runtime cannot load it: {reason}") from error
    # The session keeps the bytes for a fallback to other providers, which is off: as much memory as the weights.
    session._model_bytes = None
    if providers[0][0] != _ON_CALLING_THREAD or _has_pools(options):
        keep_in_child(session)
    first = providers[0][0]
    if session.get_providers()[0] != first:
        raise MissingExtraError(f"{name}: asked for {first}, ONNX Runtime gave {session.get_providers()[0]}.")
    return session


def make_options(threads: int) -> onnxruntime.SessionOptions:
    """Returns the options of all our sessions.

    Args:
        threads: Threads inside an operator.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # lengths and batches vary: a pattern would be planned anew for each
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _make_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def release_memory() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it (glibc).

    Loading a graph frees about as much as it keeps.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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
