"""What the processes of a server hold and have used, from /proc, and what the server says of itself at /metrics."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attacks.soak.client import Lost, ask
from tests.attacks.soak.requests import build

METRICS = ("mae_inflight_requests", "mae_inflight_bytes", "mae_queue_images", "mae_admitted_images", "mae_lanes_busy")
LINE = re.compile(rb"^(mae_[a-z_]+)(\{[^}]*\})? (\S+)$", re.M)
SCRAPE = build("/metrics", None, "", "Connection: close").content


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def workers_of(pid: int) -> list[int]:
    """The processes of the HTTP workers of a server."""
    workers = []
    for member in family(pid):
        with contextlib.suppress(OSError):
            if b"service.workers" in Path(f"/proc/{member}/cmdline").read_bytes().split(b"\0"):
                workers.append(member)
    return workers


def start_time(pid: int) -> int:
    """When a process was started, in ticks since the machine was."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def measure_processes(pid: int) -> dict[str, Any]:
    """Megabytes (shared pages count once), file descriptors, threads and CPU seconds of a server's processes."""
    total = {"memory_mb": 0.0, "descriptors": 0, "threads": 0, "processes": 0, "core_s": 0.0}
    for member in family(pid):
        folder = Path(f"/proc/{member}")
        with contextlib.suppress(OSError):
            rollup = (folder / "smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+)", rollup, re.M)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            total["memory_mb"] += int(found[1]) * 1024 / 1e6 if found else 0.0
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


def sockets_of(pid: int, port: int) -> set[int]:
    """The ports of the clients whose connections to `port` a process holds (IPv4)."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(file)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[1].rpartition(":")[2], 16) == port:
            ports.add(int(fields[2].rpartition(":")[2], 16))
    return ports
