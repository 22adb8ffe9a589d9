"""What this machine's processor can do."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_features(cpu_info: str | None = None) -> frozenset[str]:
    """Returns the processor's features as Linux names them, such as `avx512_vnni`; its name where there are none.

    Args:
        cpu_info: The text of `/proc/cpuinfo`; None reads it.
    """
    if cpu_info is None:
        cpu_info = _read()
    features = {
        feature
        for line in cpu_info.splitlines()
        if line.partition(":")[0].strip().lower() in ("flags", "features")
        for feature in line.partition(":")[2].split()
    }
    return frozenset(features or {platform.processor() or platform.machine()})


def cpu_name(cpu_info: str | None = None) -> str:
    """Returns the processor's name as the system gives it, at least its architecture.

    Args:
        cpu_info: The text of `/proc/cpuinfo`; None reads it.
    """
    for line in (_read() if cpu_info is None else cpu_info).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _read() -> str:
    with contextlib.suppress(OSError):
        return _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    return ""
