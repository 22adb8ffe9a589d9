import os
from pathlib import Path

import pytest

from edgebert.runtime import threads


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in place of the control groups', and a process that may use 8 processors."""
    monkeypatch.setattr(threads, "_GROUPS", tmp_path)
    monkeypatch.setattr(threads, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(threads, "_QUOTA_V1", tmp_path / "quota")
    monkeypatch.setattr(threads, "_PERIOD_V1", tmp_path / "period")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "garbage"}, 8),
        ({"quota": "300000\n", "period": "100000\n"}, 3),
        ({"quota": "-1\n", "period": "100000\n"}, 8),
        ({"own": "0::/\n", "cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/system.slice/a.service\n", "system.slice/a.service/cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/a/b\n", "cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ({"own": "0::/a/b\n", "a/cpu.max": "max 100000\n", "a/b/cpu.max": "500000 100000\n"}, 5),
        ({"own": "0::/a\n", "a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 100000\n"}, 3),
        ({"own": "1:cpu:/a\n", "a/cpu.max": "300000 100000\n"}, 8),
        ({"own": "1:cpu:/\n0::/a\n", "quota": "300000\n", "period": "100000\n"}, 3),
        ({"own": "0::/../..\n", "cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_available_threads_heeds_the_quota(quota: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (quota / name).parent.mkdir(parents=True, exist_ok=True)
        (quota / name).write_text(text)

    assert threads.available_threads() == expected


def test_available_threads_heeds_the_affinity(monkeypatch: pytest.MonkeyPatch, quota: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)

    assert threads.available_threads() == 1
