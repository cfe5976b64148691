"""Load on a server, sent by wrk: as many connections as one likes, or requests that come at random at a given rate.

wrk moves the bytes; a script of ours (`load.lua`) notes when each request began and ended. So figures are of a window
in which the load was steady, and the server's processor time is read over the same window.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.benchmark.processes import ServerProcess
from service.benchmark.results import LoadFigures

SCRIPT = Path(__file__).with_name("load.lua")
MISSING = "wrk is not installed, which sends the load: apt-get install wrk"
STEADY = 0.75
"""The last part of a run, which is looked at: before it, connections are opened and queues fill."""
MOST_SECONDS = 30.0
"""Of one run."""
TURNS_IN_RUN = 3
"""How often each connection should be answered in a run, so that the first answers do not weigh much."""
PAUSE_S = 10.0
"""How long, on average, a connection pauses under open arrivals: far longer than an answer takes, or a slow answer
would delay the requests after it."""
MOST_CONNECTIONS = 900
"""Below the usual limit of 1024 open files."""
BOUNDARY = "mae-bench-boundary"


class LoadFailed(Exception):
    """The load could not be sent; the message says why."""


@dataclass(frozen=True)
class Route:
    """What is asked for, and with which bodies."""

    name: str
    path: str
    content_type: str
    bodies: tuple[bytes, ...]


def routes_of(files: Sequence[bytes], decodes: bool) -> list[Route]:
    """One image a request: raw and as a form to /embed, and raw to /reconstruct if the model has a decoder."""
    raw, form = "application/octet-stream", f"multipart/form-data; boundary={BOUNDARY}"
    routes = [
        Route("/embed", "/embed", raw, tuple(files)),
        Route("/embed, multipart", "/embed", form, tuple(map(multipart, files))),
    ]
    return [*routes, Route("/reconstruct", "/reconstruct", raw, tuple(files))] if decodes else routes


def multipart(file: bytes) -> bytes:
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
    return f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def wrk_is_there() -> bool:
    """Whether load can be sent."""
    return shutil.which("wrk") is not None


def run_seconds(window_s: float, connections: int, images_per_s: float | None) -> float | None:
    """How long a closed run has to be: for its window, and for each connection's turn to come several times.

    Args:
        window_s: the least that is looked at.
        connections: which all send at once.
        images_per_s: what the server did under less load; None if nothing is known.

    Returns:
        Whole seconds, as wrk wants them; None if it would be more than `MOST_SECONDS`.
    """
    least = window_s / STEADY
    wanted = max(least, TURNS_IN_RUN * connections / images_per_s) if images_per_s else least
    return None if wanted > MOST_SECONDS else float(np.ceil(wanted))


def closed(server: ServerProcess, route: Route, connections: int, seconds: float) -> LoadFigures:
    """Each of `connections` sends its next request as soon as the one before is answered.

    Raises:
        LoadFailed: wrk has failed.
    """
    return _run(server, route, connections, seconds, None)


def opened(server: ServerProcess, route: Route, per_s: float, seconds: float) -> LoadFigures:
    """Requests come at random (as good as a Poisson process), `per_s` of them, whatever the server does.

    Many connections that each pause for an exponentially distributed time, since tools that promise a rate send in
    bursts (hey: all its workers at once) or wait for answers.

    Raises:
        LoadFailed: wrk has failed.
    """
    connections = int(min(MOST_CONNECTIONS, max(16, round(per_s * PAUSE_S))))
    return _run(server, route, connections, seconds, per_s)


def _run(server: ServerProcess, route: Route, connections: int, seconds: float, per_s: float | None) -> LoadFigures:
    pause = 0.0 if per_s is None else connections / per_s
    with tempfile.TemporaryDirectory(prefix="mae-bench-load-") as folder:
        files = [Path(folder) / f"{number}" for number in range(len(route.bodies))]
        for file, body in zip(files, route.bodies, strict=True):
            file.write_bytes(body)
        log = Path(folder) / "log"
        wrk = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
        wrk += ["--timeout", "60s", "--script", str(SCRIPT), server.url, "--"]
        arguments = [str(log), route.path, route.content_type, f"{pause:.6f}", *map(str, files)]
        before = _ended_children()
        process = subprocess.Popen([*wrk, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            start = time.monotonic()
            window = [_clocks(server, start + (1 - STEADY) * seconds)]
            window.append(_clocks(server, start + seconds - 0.05))  # while the load lasts
            said, _ = process.communicate(timeout=seconds + 60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode or not server.alive:
            raise LoadFailed(said.strip() if process.returncode else "the server has ended")
        return figures_of(
            log.read_text(),
            said,
            window[0],
            window[1],
            route=route.name,
            connections=connections,
            asked_per_s=per_s,
            load_core_s=_ended_children() - before,
        )


@dataclass(frozen=True)
class Clocks:
    """What had been used at a moment."""

    moment: float
    """Of time.monotonic(), the clock that the script reads too."""
    server: float | None
    """Core-seconds."""


def _clocks(server: ServerProcess, when: float) -> Clocks:
    time.sleep(max(0.0, when - time.monotonic()))
    return Clocks(time.monotonic(), server.core_seconds())


def _ended_children() -> float:
    """Core-seconds of the processes that were started here and have ended: finer than /proc is for a live one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures_of(
    log: str,
    said: str,
    start: Clocks,
    end: Clocks,
    *,
    route: str,
    connections: int,
    load_core_s: float,
    asked_per_s: float | None = None,
) -> LoadFigures:
    """The figures of what was answered between two moments.

    Args:
        log: what the script wrote: lines of begin, end and status.
        said: what wrk printed, its last line by the script.
        start: when the window opens.
        end: when it closes.
        route: its name.
        connections: as they were.
        load_core_s: what sending the load used, in all of the run.
        asked_per_s: of open arrivals.
    """
    rows = np.array([line.split() for line in log.splitlines()], dtype=float).reshape(-1, 3)
    inside = rows[(start.moment <= rows[:, 1]) & (rows[:, 1] < end.moment)]
    good = inside[inside[:, 2] == 200]
    window, count = end.moment - start.moment, len(good)
    p50, p99 = 1000 * np.percentile(good[:, 1] - good[:, 0], (50, 99)) if count else (None, None)
    server = None if start.server is None or end.server is None else end.server - start.server
    never_answered = int(json.loads(said.strip().splitlines()[-1])["never_answered"])
    return LoadFigures(
        route=route,
        arrivals="closed" if asked_per_s is None else "open",
        connections=connections,
        asked_per_s=asked_per_s,
        images_per_s=count / window,
        p50_ms=p50,
        p99_ms=p99,
        answered=count,
        failed=len(inside) - count + never_answered,
        window_s=window,
        core_ms=1000 * server / count if count and server is not None else None,
        server_cores=None if server is None else server / window,
        load_core_ms=1000 * load_core_s / len(rows) if len(rows) else None,
    )
