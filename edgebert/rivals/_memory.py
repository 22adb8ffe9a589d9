"""The memory that a process cannot share and the system cannot take back: what a model costs a device."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

_SUMS = ("Private_Dirty:", "Private_Hugetlb:", "Swap:")


class PrivateMemory:
    """Private memory of this process since this was made."""

    def __init__(self) -> None:
        """Notes what the process has now."""
        self._start_mb = private_mb()

    def grown_mb(self) -> float | None:
        """Returns how much more it has now, in millions of bytes; None where it cannot be told."""
        now_mb = private_mb()
        return None if now_mb is None or self._start_mb is None else now_mb - self._start_mb


def private_mb(pid: int | None = None) -> float | None:
    """Returns the private memory of a process, in millions of bytes.

    On Linux these are the pages it wrote to; files it maps and only reads are not among them, since the system drops
    those when memory is short, and has them once for all processes. Elsewhere it is psutil's unique set size, and None
    where psutil is not installed.

    Args:
        pid: The process; None is this one.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(_SUMS)) * 1024 / 1e6
    if importlib.util.find_spec("psutil") is None:
        return None
    import psutil

    private_bytes: int = psutil.Process(pid).memory_full_info().uss
    return private_bytes / 1e6
