"""What the processes of a server hold and have used, from /proc, and what the server says of itself at /metrics."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.attacks.client import Lost, ask
from tests.attacks.processes import family, memory_mb
from tests.attacks.soak.requests import build

METRICS = ("mae_inflight_requests", "mae_inflight_bytes", "mae_queue_images", "mae_admitted_images", "mae_lanes_busy")
LINE = re.compile(rb"^(mae_[a-z_]+)(\{[^}]*\})? (\S+)$", re.M)
SCRAPE = build("/metrics", None, "", "Connection: close").content


def measure_processes(pid: int) -> dict[str, Any]:
    """Megabytes (shared pages count once), file descriptors, threads and CPU seconds of a server's processes."""
    total = {"memory_mb": 0.0, "descriptors": 0, "threads": 0, "processes": 0, "core_s": 0.0}
    for member in family(pid):
        folder = Path(f"/proc/{member}")
        with contextlib.suppress(OSError):
            occupied_mb = memory_mb(member)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            total["memory_mb"] += occupied_mb
            total["descriptors"] += len(list((folder / "fd").iterdir()))
            total["threads"] += int(fields[17])
            total["processes"] += 1
            total["core_s"] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def describe_processes(pid: int) -> list[dict[str, Any]]:
    """The threads of each process of a server, and how many descriptors of each kind it has."""
    described = []
    for member in family(pid):
        folder, kinds = Path(f"/proc/{member}"), Counter[str]()
        for file in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                kinds[os.readlink(file).partition(":[")[0]] += 1
        threads = Counter((task / "comm").read_text().strip() for task in (folder / "task").iterdir())
        described.append({"pid": member, "threads": threads, "descriptors": kinds})
    return described


async def scrape(port: int) -> dict[str, float]:
    """Some metrics of the server; empty if it does not answer in time, as while it is stopped."""
    try:
        answer = await ask(port, SCRAPE, 4)
    except (OSError, Lost):
        return {}
    values = dict.fromkeys((*METRICS, "status 500"), 0.0)
    for name, labels, value in LINE.findall(answer.body):
        if name.decode() in values:
            values[name.decode()] += float(value)
        elif name == b"mae_requests_total" and b'code="500"' in labels:
            values["status 500"] += float(value)
    return values


def stolen_core_seconds() -> float:
    """CPU time that the hypervisor gave to other machines."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def own_core_seconds() -> float:
    """CPU time of this process, which sends the load."""
    times = os.times()
    return times.user + times.system
