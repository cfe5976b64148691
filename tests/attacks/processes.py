"""The processes of a server, as /proc shows them."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path


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


def memory_mb(pid: int) -> float:
    """Megabytes that a process occupies; of a page that n processes share, one nth counts.

    Raises:
        OSError: it has ended.
    """
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def family_memory_mb(pid: int) -> float:
    """Megabytes that a process and its descendants occupy, of which shared pages count once."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += memory_mb(member)
    return total


def own_virtual_bytes() -> int:
    """The bytes of this process's address space, which RLIMIT_AS limits."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def sockets_of(pid: int, port: int) -> set[int]:
    """The ports of the clients whose connections to `port` a process holds (IPv4)."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(file.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[1].rpartition(":")[2], 16) == port:
            ports.add(int(fields[2].rpartition(":")[2], 16))
    return ports
