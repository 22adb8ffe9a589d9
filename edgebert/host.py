"""What a measurement was taken on: processor, threads, system and versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import onnxruntime

import edgebert
from edgebert.runtime.threads import available_threads

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = ("numpy", "tokenizers", "torch", "transformers", "optimum", "optimum-onnx", "openvino", "nncf")


def host_facts() -> dict[str, Any]:
    """Returns plain facts about this machine and what is installed on it.

    `threads` is how many processors this process may really use; `load_average` is that of the last minute, in
    processors (None where the system has none), since a busy machine cannot be timed well; `versions` leaves out
    packages that are not installed.
    """
    return {
        "cpu": _cpu_name(),
        "threads": available_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {"edgebert": edgebert.__version__, "onnxruntime": onnxruntime.__version__, **_versions()},
    }


def cpu_features() -> frozenset[str]:
    """Returns what the processor can do, such as `avx512_vnni`, as Linux names it; nothing on other systems."""
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def _cpu_name() -> str:
    """Returns the processor's name as the system gives it, at least its architecture."""
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
