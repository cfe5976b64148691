"""One server under mixed traffic: cycles of all faults, and rests without load, in which its level is measured."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from tests.attacks.client import Answer
from tests.attacks.processes import memory_mb
from tests.attacks.server import AttackedServer
from tests.attacks.soak import faults
from tests.attacks.soak.disturbances import Disturbances
from tests.attacks.soak.requests import Request, changing_requests, fixed_requests
from tests.attacks.soak.samples import (
    METRICS,
    describe_processes,
    measure_processes,
    own_core_seconds,
    scrape,
    stolen_core_seconds,
)
from tests.attacks.soak.traffic import Soak, measure_capacity, record

LEVEL = 0.65
"""The traffic's share of the capacity."""
SAMPLE_S = 5.0
MEMORY_GROWTH, LATENCY_GROWTH = 1.03, 1.15
DRAIN_S = 35.0
LEAST_CYCLES = 3
CYCLE_S, REST_S = 300.0, 30.0
QUIET_SHARE = 0.94
"""The share of a cycle in which faults begin: the last ones end in the rest of it."""
EXCLUSIVE = {"kill", "stop", "silent connections", "burst"}
"""Faults of which one waits for another."""
Schedule = Sequence[tuple[str, Callable[[Soak], Awaitable[None]]]]


class Phase:
    """The run of one server. `result` has all that was measured, and can be written as JSON at any time."""

    def __init__(self, server: AttackedServer, workers: int, seconds: float, save: Callable[[], None]) -> None:
        self._server = server
        self._pid = server.process.pid
        self._end = time.monotonic() + seconds
        self._save = save
        self._seconds = seconds
        self._begin = time.monotonic()
        self._cycles = max(LEAST_CYCLES, round(seconds / CYCLE_S))
        self._rest_s = REST_S if seconds > 600 else 12.0
        self._files = faults.HostileFiles()
        self._alone = asyncio.Lock()
        self.soak = Soak(server.port, {}, changing_requests())
        self.samples: list[dict[str, Any]] = []
        self.marks: list[dict[str, Any]] = []
        self.rests: list[dict[str, Any]] = []
        self.cycles: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {
            "workers": workers,
            "samples": self.samples,
            "faults": self.marks,
            "rests": self.rests,
            "cycles": self.cycles,
        }

    async def run(self, recorded: dict[Request, Answer]) -> None:
        """Records or compares the answers, measures the capacity, then runs cycles and rests."""
        self._files.prepare()
        # What the server says of itself depends on its settings, so GETs are recorded anew for each server.
        missing = [one for one in fixed_requests() if one not in recorded or one.content.startswith(b"GET")]
        recorded.update(await record(self.soak, missing))
        self.soak.recorded.update(recorded)
        self.soak.requests[:] = recorded
        capacity = await measure_capacity(self.soak, min(20.0, self._seconds / 15))
        self.result["capacity_per_s"], self.result["rate_per_s"] = capacity, LEVEL * capacity
        schedule, disturbances = self._schedule(capacity)
        self.soak.statuses.clear()
        sampler = asyncio.create_task(self._sample())
        for number in range(self._cycles):
            left = self._cycles - number
            # A rest follows the first cycle, which warms up, and then every second one and the last.
            rests = sum(self._is_followed_by_rest(later) for later in range(number, self._cycles))
            length = (self._end - time.monotonic() - rests * (self._rest_s + 4)) / left
            await self._run_cycle(max(10.0, length), schedule)
            if self._is_followed_by_rest(number):
                await self._rest()
            self._save()
            if self._server.process.poll() is not None:
                self.soak.note("the server ended by itself", str(self._server.process.poll()))
                break
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
        self.result["kills"] = disturbances.kills
        await self._drain()
        self._judge()

    def _is_followed_by_rest(self, number: int) -> bool:
        return number % 2 == 0 or number == self._cycles - 1

    def _schedule(self, capacity: float) -> tuple[Schedule, Disturbances]:
        burst_s = min(20.0, self._seconds / self._cycles / 12)
        disturbances = Disturbances(self._pid, capacity, burst_s)
        kill = [("kill", disturbances.kill_worker)] if self.result["workers"] else []
        return [
            *kill,
            ("leave", faults.leave),
            ("half headers", faults.send_half_headers),
            ("costly files", self._files.send),
            ("pipelining", faults.pipeline),
            *kill,
            ("stalled bodies", faults.stall_uploads),
            ("stop", disturbances.stop),
            ("wrong keys", faults.send_wrong_keys),
            ("costly files", self._files.send),
            ("silent connections", faults.open_idle),
            ("too much", faults.send_too_much),
            ("cut files", faults.send_truncated),
            ("burst", disturbances.burst),
            ("half-closed", faults.half_close),
            ("slow upload", faults.upload_slowly),
            ("costly files", self._files.send),
        ], disturbances

    async def _run_cycle(self, seconds: float, schedule: Schedule) -> None:
        """Traffic for so many seconds, in which all faults begin one after the other, evenly spaced."""
        begin, ended = time.monotonic(), asyncio.Event()
        traffic = asyncio.create_task(self.soak.run(self.result["rate_per_s"], ended))
        pause_s = QUIET_SHARE * seconds / len(schedule)
        running = []
        for index, (name, fault) in enumerate(schedule, 1):
            running.append(asyncio.create_task(self._run_fault(name, fault)))
            await asyncio.sleep(max(0.0, begin + index * pause_s - time.monotonic()))
        await asyncio.gather(*running)
        await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
        ended.set()
        await traffic
        self.cycles.append({"begin_s": begin - self._begin, "end_s": time.monotonic() - self._begin})

    async def _run_fault(self, name: str, fault: Callable[[Soak], Awaitable[None]]) -> None:
        async with self._alone if name in EXCLUSIVE else nullcontext():
            mark = {"name": name, "begin_s": time.monotonic() - self._begin}
            self.marks.append(mark)
            try:
                await fault(self.soak)
            except Exception as error:  # the hour goes on, and the verdict has it
                self.soak.note(f"the fault {name} failed ({type(error).__name__})", str(error))
            mark["end_s"] = time.monotonic() - self._begin

    async def _sample(self) -> None:
        before = (time.monotonic(), own_core_seconds(), stolen_core_seconds(), 0.0)
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.samples.append(await self._measure(before))
            before = (time.monotonic(), own_core_seconds(), stolen_core_seconds(), self.samples[-1]["core_s"])

    async def _measure(self, before: tuple[float, float, float, float]) -> dict[str, Any]:
        processes = measure_processes(self._pid)
        now = time.monotonic()
        elapsed = now - before[0]
        times = [seconds for _, seconds in self.soak.canary]
        canary = [(begin - self._begin, seconds) for begin, seconds in self.soak.canary]
        statuses = dict(self.soak.statuses)
        self.soak.canary.clear()
        self.soak.statuses.clear()
        return {
            "at_s": now - self._begin,
            **processes,
            "server_cores": max(0.0, processes["core_s"] - before[3]) / elapsed if before[3] else None,
            "load_cores": (own_core_seconds() - before[1]) / elapsed,
            "stolen_cores": (stolen_core_seconds() - before[2]) / elapsed,
            "load_memory_mb": memory_mb(os.getpid()),
            "statuses": statuses,
            "per_s": sum(statuses.values()) / elapsed,
            "p50_ms": 1000 * statistics.median(times) if times else None,
            "p99_ms": 1000 * percentile(times, 99) if times else None,
            "canary": canary,
            "metrics": await scrape(self._server.port),
        }

    async def _rest(self) -> None:
        """No load; the level at the end of the rest is the median of three measurements."""
        await self._run_fault("long files", faults.use_all_threads)
        begin = time.monotonic()
        await asyncio.sleep(self._rest_s)
        await self._run_fault("end of idle threads", faults.end_idle_threads)
        await asyncio.sleep(1)
        levels = []
        for _ in range(3):
            levels.append(measure_processes(self._pid))
            await asyncio.sleep(1)
        level = {name: statistics.median(one[name] for one in levels) for name in levels[0]}
        times = {"begin_s": begin - self._begin, "at_s": time.monotonic() - self._begin}
        self.rests.append({**times, **level, "each": describe_processes(self._pid)})
        metrics = await scrape(self._server.port)
        # The request that reads the metrics is counted itself.
        for name in METRICS:
            if metrics.get(name, -1) > (1 if name == "mae_inflight_requests" else 0):
                self.soak.note(f"{name} at rest", str(metrics[name]))
        if metrics.get("status 500"):
            self.soak.note("status 500 in the metrics", str(metrics["status 500"]))

    async def _drain(self) -> None:
        begin = time.monotonic()
        self._server.process.send_signal(signal.SIGTERM)
        while self._server.process.poll() is None and time.monotonic() < begin + DRAIN_S:
            await asyncio.sleep(0.1)
        self.result["drain_s"] = time.monotonic() - begin
        self.result["exit_code"] = self._server.process.poll()
        self.soak.note(f"exit code {self.result['exit_code']}")

    def _judge(self) -> None:
        """Compares the rests with the first one, and the canary in the last cycle with that in the second."""
        if len(self.cycles) < LEAST_CYCLES:
            return
        log = self._server.log
        self.soak.seen["tracebacks"] += log.count("Traceback")
        self.result["log"] = [line for line in log.splitlines() if " ERROR " in line or "Traceback" in line][:50]
        first, last = self.rests[0], self.rests[-1]
        growth = last["memory_mb"] / first["memory_mb"]
        self.result["memory_growth"] = growth
        self.soak.seen[f"memory at rest grew to {growth:.3f}"] += growth > MEMORY_GROWTH
        # Pools of threads grow with what comes at once, up to their bounds, so a few more are no leak.
        for name, tolerance in (("descriptors", 0), ("threads", 2), ("processes", 0)):
            levels = [rest[name] for rest in self.rests]
            self.soak.seen[f"{name} at rest: {levels}"] += max(levels) - levels[0] > tolerance
        early, late = (self._median_of(cycle) for cycle in (self.cycles[1], self.cycles[-1]))
        self.result["canary_p50_ms"] = [early, late]
        self.soak.seen[f"median of the canary from {early:.1f} to {late:.1f} ms"] += late > LATENCY_GROWTH * early

    def _median_of(self, cycle: dict[str, Any]) -> float:
        times = [
            seconds
            for sample in self.samples
            for begin, seconds in sample["canary"]
            if cycle["begin_s"] <= begin < cycle["end_s"]
        ]
        return 1000 * statistics.median(times)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]
