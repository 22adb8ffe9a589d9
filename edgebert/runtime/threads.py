"""How many threads this process may use: its affinity mask and the processor quotas of its control groups."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

MOST_THREADS = 1024
"""More than any processor has; a pool of a million would take the machine down."""

_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def available_threads() -> int:
    """Returns the number of processors this process may really use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min((quota for quota in _quotas() if 0 < quota < affinity), default=affinity)))


def _quotas() -> Iterator[float]:
    """Gives what the control groups allow, in processors: this process's own group, and each around it."""
    for group in _own_groups():
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`: no quota
            limit, period = (group / "cpu.max").read_text().split()
            yield float(limit) / float(period)
    with contextlib.suppress(OSError, ValueError):
        yield float(_QUOTA_V1.read_text()) / float(_PERIOD_V1.read_text())


def _own_groups() -> Iterator[Path]:
    """Gives the folder of this process's control group, and of each around it, up to the root."""
    with contextlib.suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            hierarchy, _, path = line.partition("::")  # version 2 has one hierarchy, 0, and names no controllers
            if hierarchy == "0":
                own = _GROUPS / path.lstrip("/")
                yield from (own, *(group for group in own.parents if group.is_relative_to(_GROUPS)))
                return
    yield _GROUPS
