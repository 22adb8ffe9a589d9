"""The memory that a process shares with no other, which is what a model costs a device."""

from __future__ import annotations

import importlib.util


class PrivateMemory:
    """Private memory of this process since this was made."""

    def __init__(self) -> None:
        """Notes what the process has now."""
        self._start_mb = private_mb()

    def grown_mb(self) -> float | None:
        """Returns how much more it has now, in millions of bytes; None where psutil is not installed."""
        now_mb = private_mb()
        return None if now_mb is None or self._start_mb is None else now_mb - self._start_mb


def private_mb(pid: int | None = None) -> float | None:
    """Returns the private memory of a process, in millions of bytes; None where psutil is not installed.

    Args:
        pid: The process; None is this one.
    """
    if importlib.util.find_spec("psutil") is None:
        return None
    import psutil

    private_bytes: int = psutil.Process(pid).memory_full_info().uss
    return private_bytes / 1e6
