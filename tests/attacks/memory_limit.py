"""The worst allowed files under a limit of memory, by a cgroup: nothing is killed.

.venv/bin/python -m tests.attacks.memory_limit [process|workers|embed|start …] [--seconds 30] [--least]    # 10 minutes

The server has a real engine and the default settings. `--least` also tries smaller limits, down to the first under
which something is killed. What this process may not limit is counted as not tried.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow.parquet

from tests.attacks.cgroups import ROOT, enter, make_group
from tests.attacks.decodes import FLOODS, HEAVY, LIMIT_MIB, SETTLE_S, answer
from tests.attacks.processes import family_memory_mb
from tests.attacks.server import MAE, PHOTO, AttackedServer, report, serve
from tests.attacks.time_limit import end_after

PARTS = ("process", "workers", "embed", "start")
"""A server without HTTP workers, one with two, `mae embed`, and a server with photographs alone under small limits."""
CLIENTS = 12
LEAST_MIB = (1536, 1280, 1152, 1024, 896, 768, 640, 512)
START_MIB = (512, 448, 384, 352, 320, 288, 256, 224, 192, 160)
VERSION_1, VERSION_2 = ROOT / "memory", ROOT


class MemoryGroup:
    """A cgroup with a limit of memory, of version 1 or 2."""

    def __init__(self, folder: Path, limit_mib: int) -> None:
        self.folder, self._old = folder, folder.parent == VERSION_1
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] if self._old else ["memory.max"]
        for name in names:
            (folder / name).write_text(str(limit_mib << 20))

    @property
    def peak_mib(self) -> float:
        name = "memory.max_usage_in_bytes" if self._old else "memory.peak"
        return int((self.folder / name).read_text()) / (1 << 20)

    @property
    def kills(self) -> int:
        """Processes that the system has killed for want of memory."""
        text = (self.folder / ("memory.oom_control" if self._old else "memory.events")).read_text()
        return int(re.search(r"^oom_kill (\d+)", text, re.M)[1])  # type: ignore[index]


@contextmanager
def limit_memory(limit_mib: int) -> Iterator[MemoryGroup | None]:
    """A cgroup with this limit; None where this process may make none."""
    with make_group((VERSION_1 if VERSION_1.is_dir() else VERSION_2) / "mae-attack-memory") as folder:
        try:
            group = None if folder is None else MemoryGroup(folder, limit_mib)
        except OSError:
            group = None
        yield group


class OtherClient:
    """Sends photographs, until the block is left."""

    def __init__(self, server: AttackedServer) -> None:
        self.seen: Counter[str] = Counter()
        self._server = server
        self._ended = threading.Event()

    @contextmanager
    def watch(self) -> Iterator[None]:
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _send(self) -> None:
        while not self._ended.wait(0.5):
            self.seen[f"photograph: {ask(self._server, PHOTO)}"] += 1
            self.seen[f"probe: {httpx.get(f'{self._server.url}/livez', timeout=60).status_code}"] += 1


def ask(server: AttackedServer, *images: bytes) -> str:
    try:
        return str(answer(server, *images)[0])
    except httpx.TransportError as error:
        return type(error).__name__


def attack_server(limit_mib: int, workers: int, seconds: float, bodies: Sequence[Sequence[bytes]]) -> Counter[str]:
    """Sends all bodies again and again beside another client; what was measured is written to stderr."""
    seen: Counter[str] = Counter()
    with limit_memory(limit_mib) as group:
        if group is None:
            return Counter(["not tried, for want of permission"])
        with serve(real=True, enter=enter(group.folder), http_workers=workers) as server:
            for count in (*[1] * 20, *[64] * 3):  # all sizes of batches have their memory from now on
                answer(server, *[PHOTO] * count)
            before = family_memory_mb(server.process.pid)
            other, end, turns = OtherClient(server), time.monotonic() + seconds, itertools.count()

            def send(_: int) -> None:
                while time.monotonic() < end and server.process.poll() is None:
                    seen[f"attack: {ask(server, *bodies[next(turns) % len(bodies)])}"] += 1

            with other.watch(), ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(send, range(CLIENTS)))
            seen += other.seen
            settled = time.monotonic() + SETTLE_S
            after = family_memory_mb(server.process.pid)
            while after > 1.1 * before and time.monotonic() < settled and server.process.poll() is None:
                time.sleep(0.5)
                after = family_memory_mb(server.process.pid)
            seen["memory is back" if after <= 1.1 * before else "memory is not back"] += 1
            seen["killed"] += group.kills
            print(
                f"limit {limit_mib} MiB, {workers} HTTP workers: peak {group.peak_mib:.0f} MiB; {before:.0f} MB before,"
                f" {after:.0f} MB after; {group.kills} killed; {dict(seen)}",
                file=sys.stderr,
                flush=True,
            )
    return seen


def attack_command(limit_mib: int, files: Sequence[bytes]) -> Counter[str]:
    """`mae embed` over a folder of hostile files and photographs."""
    with limit_memory(limit_mib) as group, tempfile.TemporaryDirectory(prefix="mae-attack-") as name:
        if group is None:
            return Counter(["not tried, for want of permission"])
        folder = Path(name, "images")
        folder.mkdir()
        for number, data in enumerate(files):
            (folder / f"{2 * number:03}.jpg").write_bytes(data)
            (folder / f"{2 * number + 1:03}.jpg").write_bytes(PHOTO)
        command = [*MAE, "embed", str(folder), "-o", f"{name}/out/"]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter(group.folder), timeout=1200)
        rows = pyarrow.parquet.read_table(f"{name}/out") if done.returncode in (0, 1) else None
        print(f"mae embed, limit {limit_mib} MiB: peak {group.peak_mib:.0f} MiB\n{done.stderr}", file=sys.stderr)
        seen = Counter([f"mae embed: exit code {done.returncode}"])
        if rows is not None:
            photographs = [
                error
                for path, error in zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True)
                if int(Path(path).stem) % 2
            ]
            seen["mae embed: photographs"] += photographs.count(None)
            seen["mae embed: photographs that failed"] += len(photographs) - photographs.count(None)
        seen["killed"] += group.kills
    return seen


def attack_start(seen: Counter[str]) -> None:
    """Starts servers under smaller and smaller limits, down to the first that does not answer photographs."""
    for limit_mib in START_MIB:
        with limit_memory(limit_mib) as group:
            if group is None:
                seen["not tried, for want of permission"] += 1
                return
            try:
                with serve(real=True, enter=enter(group.folder)) as server:
                    codes = Counter(ask(server, PHOTO) for _ in range(20))
            except (RuntimeError, httpx.TransportError) as error:
                codes = Counter([type(error).__name__])
            print(
                f"start, limit {limit_mib} MiB: {dict(codes)}, peak {group.peak_mib:.0f} MiB, {group.kills} killed",
                file=sys.stderr,
                flush=True,
            )
            if set(codes) != {"200"} or group.kills:
                seen[f"start: MiB that do not suffice: {limit_mib}"] += 1
                return
            seen["start: limits that suffice"] += 1


EXPECTED = {
    "start: limits that suffice",
    *(f"start: MiB that do not suffice: {limit_mib}" for limit_mib in START_MIB[1:]),
    "not tried, for want of permission",
    "photograph: 200",
    "probe: 200",
    "memory is back",
    *(f"attack: {code}" for code in (200, 400, 413, 429, 504)),
    "mae embed: exit code 1",
    "mae embed: photographs",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"by default all: {' '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=30, help="time of each load")
    parser.add_argument("--least", action="store_true", help="also look for the smallest limit that holds")
    options = parser.parse_args()
    end_after(minutes=30 + (len(LEAST_MIB) * (5 + options.seconds / 60) if options.least else 0))
    makers: list[Callable[[], bytes]] = [*HEAVY.values(), *FLOODS.values()]
    files = [make() for make in makers]
    bodies = [[data] for data in files] + [[HEAVY["WebP"]()] * 64, [HEAVY["RGBA"]()] * 16]
    seen: Counter[str] = Counter()
    for name, workers in (("process", 0), ("workers", 2)):
        if name in options.parts:
            seen += attack_server(LIMIT_MIB, workers, options.seconds, bodies)
    if "embed" in options.parts:
        seen += attack_command(LIMIT_MIB, files)
    if "start" in options.parts:
        attack_start(seen)
    if options.least:
        for limit_mib in LEAST_MIB:
            found = attack_server(limit_mib, 0, options.seconds, bodies)
            if {what for what, count in found.items() if count} - EXPECTED:
                print(f"the first limit that does not hold: {limit_mib} MiB", file=sys.stderr)
                break
    return report("memory_limit", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
