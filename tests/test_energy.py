import time
from pathlib import Path

import pytest

from edgebert.energy import WATTS_PER_BUSY_CORE, EnergyMeter


def _zone(folder: Path, number: int, *, name: str, microjoules: int) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    return zone


def test_reads_every_package_and_nothing_else(tmp_path: Path) -> None:
    _zone(tmp_path, 0, name="package-0", microjoules=100)
    _zone(tmp_path, 1, name="package-1", microjoules=700_000)
    _zone(tmp_path, 2, name="psys", microjoules=5)
    meter = EnergyMeter(tmp_path)
    _zone(tmp_path, 0, name="package-0", microjoules=600_100)
    _zone(tmp_path, 1, name="package-1", microjoules=900_000)
    _zone(tmp_path, 2, name="psys", microjoules=999_999)

    energy = meter.read()

    assert energy.source == "rapl"
    assert energy.joules == pytest.approx(0.8)


def test_a_counter_that_began_anew(tmp_path: Path) -> None:
    _zone(tmp_path, 0, name="package-0", microjoules=900_000)
    meter = EnergyMeter(tmp_path)
    _zone(tmp_path, 0, name="package-0", microjoules=100_000)

    assert meter.read().joules == pytest.approx(0.2)


def test_an_estimate_is_called_one_where_there_is_no_counter(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path / "nothing")
    start = time.process_time()
    while time.process_time() - start < 0.02:
        pass

    energy = meter.read()

    assert energy.source == "estimate"
    assert energy.joules >= 0.02 * WATTS_PER_BUSY_CORE


def test_a_counter_that_went_away_leaves_the_estimate(tmp_path: Path) -> None:
    zone = _zone(tmp_path, 0, name="package-0", microjoules=900_000)
    meter = EnergyMeter(tmp_path)
    (zone / "energy_uj").unlink()

    assert meter.read().source == "estimate"
