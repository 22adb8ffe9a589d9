"""Which processors can multiply 8-bit numbers without overflowing on the way, and which one this is."""

from __future__ import annotations

import platform

from edgebert.processor import cpu_features

SATURATING = ("avx2", "avx512")
"""Targets that add two products of 8 bits into 16 (VPMADDUBSW): weights of 8 bits make the sum overflow, 7 fit."""


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
