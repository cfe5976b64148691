import os
from pathlib import Path

import pytest

from model.engines.cpu import available_cpus


@pytest.fixture(autouse=True)
def eight_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 2),  # one and a half keeps two busy
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("20000 10000", 2),
        ("9900000 100000", 8),
    ],
)
def test_the_quota_of_cgroup_v2(tmp_path: Path, quota: str, expected: int) -> None:
    write(tmp_path / "cpu.max", quota + "\n")
    assert available_cpus(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [(-1, 100_000, 8), (300_000, 100_000, 3), (25_000, 100_000, 1), (30_000, 20_000, 2)],
)
def test_the_quota_of_cgroup_v1(tmp_path: Path, quota: int, period: int, expected: int) -> None:
    write(tmp_path / "cpu" / "cpu.cfs_quota_us", f"{quota}\n")
    write(tmp_path / "cpu" / "cpu.cfs_period_us", f"{period}\n")
    assert available_cpus(tmp_path) == expected


def test_without_a_cgroup_the_affinity_decides(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 8


def test_without_affinity_the_machine_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cpus(tmp_path) == 64
