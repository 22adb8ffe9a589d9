"""How much energy a piece of work took: the processor's own counter where there is one, else an estimate."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

import msgspec

EnergySource = Literal["rapl", "estimate"]

WATTS_PER_BUSY_CORE = 5.0
"""What the estimate takes a busy core to draw: the order of magnitude of laptop and server cores alike."""

_RAPL = Path("/sys/class/powercap")


class Energy(msgspec.Struct, frozen=True):
    """Energy in joules, and where the figure comes from.

    `rapl` is the counter of all processor packages (Linux powercap), so whatever else ran meanwhile is in it;
    `estimate` is this process's processor time times `WATTS_PER_BUSY_CORE`, and only good for comparing.
    """

    joules: float
    source: EnergySource


class EnergyMeter:
    """Counts from when it is made."""

    def __init__(self, folder: Path = _RAPL) -> None:
        """Starts counting; `folder` is where the system shows its power zones."""
        self._folder = folder
        self._cpu_s = time.process_time()
        self._start = _read_packages(folder)

    def read(self) -> Energy:
        """Returns the energy since the start."""
        now = _read_packages(self._folder)
        if self._start and now.keys() == self._start.keys():
            joules = sum(_since(self._start[zone], counter, zone) for zone, counter in now.items())
            return Energy(joules / 1e6, "rapl")
        return Energy((time.process_time() - self._cpu_s) * WATTS_PER_BUSY_CORE, "estimate")


def _read_packages(folder: Path) -> dict[Path, int]:
    """Returns the counter of every processor package, in microjoules; empty where none can be read."""
    counters = {}
    for zone in sorted(folder.glob("intel-rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package"):
                counters[zone] = int((zone / "energy_uj").read_text())
    return counters


def _since(start: int, now: int, zone: Path) -> int:
    """Returns the difference of two readings of a counter that begins anew when it is full."""
    if now >= start:
        return now - start
    return now - start + int((zone / "max_energy_range_uj").read_text())
