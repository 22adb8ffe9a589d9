"""What a measurement was taken on: processor, threads, system and versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from typing import Any

import onnxruntime

import edgebert
from edgebert.processor import cpu_name
from edgebert.runtime.threads import available_threads

_PACKAGES = ("numpy", "tokenizers", "torch", "transformers", "optimum", "optimum-onnx", "openvino", "nncf")


def host_facts() -> dict[str, Any]:
    """Returns plain facts about this machine and what is installed on it.

    `threads` is how many processors this process may really use; `load_average` is that of the last minute, in
    processors (None where the system has none), since a busy machine cannot be timed well; `versions` leaves out
    packages that are not installed.
    """
    return {
        "cpu": cpu_name(),
        "threads": available_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {"edgebert": edgebert.__version__, "onnxruntime": onnxruntime.__version__, **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
