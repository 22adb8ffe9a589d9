"""How many threads this process may use: its affinity mask and its container's processor quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

MOST_THREADS = 1024
"""More than any processor has; a pool of a million would take the machine down."""

_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_threads() -> int:
    """Returns the number of processors this process may really use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _quota() -> float | None:
    """Returns the control group's processor quota, in processors; None when there is none."""
    try:
        limit, period = _QUOTA_V2.read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = _QUOTA_V1.read_text(), _PERIOD_V1.read_text()
        except OSError:
            return None
    try:
        return float(limit) / float(period) if float(limit) > 0 else None
    except ValueError:
        return None
