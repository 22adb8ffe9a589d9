"""What this machine's processor can do, and which one can multiply 8-bit numbers without overflowing on the way."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")

SATURATING = ("avx2", "avx512")
"""Targets that add two products of 8 bits into 16 (VPMADDUBSW): weights of 8 bits make the sum overflow, 7 fit."""


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


def detect_target(cpu_info: str | None = None, machine: str | None = None) -> str:
    """Returns this machine's target; `avx2`, the most careful, where its processor says nothing.

    Args:
        cpu_info: The text of `/proc/cpuinfo`; None reads it.
        machine: The architecture; None asks the system.
    """
    if (machine or platform.machine()).lower() in ("arm64", "aarch64"):
        return "arm64"
    flags = cpu_features(cpu_info)
    if flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "avx512_vnni"
    return "avx512" if "avx512bw" in flags else "avx2"


def saturates(cpu_info: str | None = None) -> bool:
    """Says whether this processor is known to overflow where activations and weights of 8 bits are multiplied.

    Args:
        cpu_info: The text of `/proc/cpuinfo`; None reads it.
    """
    return "avx2" in cpu_features(cpu_info) and detect_target(cpu_info) in SATURATING


def _read() -> str:
    with contextlib.suppress(OSError):
        return _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    return ""
