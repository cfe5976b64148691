"""How many CPUs this process may use (by affinity mask and cgroup quota), and the CPU's name."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """The number of CPUs that this process may keep busy, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name, or its architecture where the system does not tell."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _quota(cgroup: Path) -> float | None:
    """CPUs granted by the cgroup (`cpu.max` of version 2, `cpu.cfs_*` of version 1), None for no limit."""
    unified = cgroup / "cpu.max"
    if unified.is_file():
        granted, period = unified.read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    legacy = cgroup / "cpu" / "cpu.cfs_quota_us"
    if legacy.is_file() and (quota := int(legacy.read_text())) > 0:
        return quota / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    return None
