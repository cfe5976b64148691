"""Load on a server, sent by wrk: a fixed number of busy connections, or requests that arrive at random at a given rate.

wrk sends the bytes; the script `load.lua` logs when each request began and ended. The figures are those of a window in
which the load was steady; the server's CPU time is read over the same window.
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

from model.config import MAEConfig
from service.api.open_inference.messages import HEADER_LENGTH
from service.api.open_inference.tensors import LENGTH, Tensor, encode_values
from service.benchmark.processes import ServerProcess
from service.benchmark.results import LoadFigures

SCRIPT = Path(__file__).with_name("load.lua")
WRK_MISSING = "wrk, which sends the load, is not installed: apt-get install wrk"
STEADY_SHARE = 0.75
"""The share of a run, at its end, that is measured: before it, connections are opened and queues fill."""
MAX_SECONDS = 30.0
"""The longest run."""
ANSWERS_PER_CONNECTION = 3
"""Number of answers that each connection should get in a run, so that the first ones weigh little."""
PAUSE_S = 10.0
"""The mean pause of a connection under open arrivals. It is far longer than an answer takes: otherwise a slow answer
would delay the requests after it."""
IDLE_S = 600.0
"""The HEADER_TIMEOUT_S of a server under open arrivals: its connections pause before their first request, too."""
MAX_CONNECTIONS = 900
"""The largest number of connections, below the usual limit of 1024 open files."""
BOUNDARY = "mae-bench-boundary"
PIXELS = "/v2, pixels, nothing decoded"
"""The name of the route to which squares of pixels are sent."""


class LoadFailed(Exception):
    """The load could not be sent; the message says why."""


@dataclass(frozen=True)
class Route:
    """Requests of one kind: their path, and the bodies that are sent in turn."""

    name: str
    path: str
    content_type: str
    bodies: tuple[bytes, ...]
    json_length: int | None = None
    """Length of the JSON before binary tensors, a header of the Open Inference Protocol; None: it is not sent."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell what the bodies are."""
        length = {} if self.json_length is None else {HEADER_LENGTH.title(): str(self.json_length)}
        return {"Content-Type": self.content_type, **length}


def routes_of(files: Sequence[bytes], has_decoder: bool) -> list[Route]:
    """Requests with one image each: raw and as a form to /embed, and raw to /reconstruct if the model has a decoder."""
    raw, form = "application/octet-stream", f"multipart/form-data; boundary={BOUNDARY}"
    routes = [
        Route("/embed", "/embed", raw, tuple(files)),
        Route("/embed, multipart", "/embed", form, tuple(map(multipart, files))),
    ]
    return [*routes, Route("/reconstruct", "/reconstruct", raw, tuple(files))] if has_decoder else routes


def open_inference_routes(files: Sequence[bytes], config: MAEConfig) -> list[Route]:
    """Requests with one image each to the model `embed` of the Open Inference Protocol.

    The image comes as a raw body, as the binary data of a tensor, or as a square of pixels, which needs no decoder.
    """
    path, kind, side = "/v2/models/embed/infer", "application/octet-stream", config.image_size
    squares = np.random.default_rng(0).integers(0, 256, (len(files), 1, side, side, 3), dtype=np.uint8)
    # JSON may end in blanks: so the files, which differ in size, have one header.
    width = len(_tensor_json("image", "BYTES", [1, 1], LENGTH.size + max(map(len, files))))
    encoded = []
    for file in files:
        data = encode_values(Tensor("image", "BYTES", (1, 1), [file]))
        encoded.append(_tensor_json("image", "BYTES", [1, 1], len(data)).ljust(width) + data)
    head = _tensor_json("pixels", "UINT8", list(squares.shape[1:]), squares[0].nbytes)
    pixels = tuple(head + square.tobytes() for square in squares)
    return [
        Route("/v2, raw image", path, kind, tuple(files), 0),
        Route("/v2, binary image", path, kind, tuple(encoded), width),
        Route(PIXELS, path, kind, pixels, len(head)),
    ]


def _tensor_json(name: str, datatype: str, shape: list[int], size: int) -> bytes:
    """The JSON of a request with one input of `size` bytes behind it, and all outputs behind the answer's JSON."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def multipart(file: bytes) -> bytes:
    """The body of a form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
    return f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def wrk_is_installed() -> bool:
    """Whether wrk is on the path."""
    return shutil.which("wrk") is not None


def run_seconds(window_s: float, connections: int, images_per_s: float | None) -> float | None:
    """How long a run with closed arrivals must last to fill its window and to answer each connection several times.

    Args:
        window_s: seconds that must be measured.
        connections: connections that send at the same time.
        images_per_s: throughput of the server under less load; None if it is not known.

    Returns:
        Whole seconds, as wrk wants them; None if the run would take more than `MAX_SECONDS`.
    """
    seconds = window_s / STEADY_SHARE
    if images_per_s:
        seconds = max(seconds, ANSWERS_PER_CONNECTION * connections / images_per_s)
    return None if seconds > MAX_SECONDS else float(np.ceil(seconds))


def open_run_seconds(window_s: float) -> float:
    """How long a run with open arrivals lasts: twice as long as a closed one, since fewer requests are sent."""
    return min(MAX_SECONDS, float(round(2 * window_s / STEADY_SHARE + 0.5)))


def send_closed_load(server: ServerProcess, route: Route, connections: int, seconds: float) -> LoadFigures:
    """Each of `connections` sends its next request as soon as the one before is answered.

    Raises:
        LoadFailed: wrk has failed, or the server has ended.
    """
    return _send_load(server, route, connections, seconds, None)


def send_open_load(server: ServerProcess, route: Route, rate_per_s: float, seconds: float) -> LoadFigures:
    """Requests arrive at random, `rate_per_s` on average, however fast the server answers (nearly a Poisson process).

    Many connections each pause for an exponentially distributed time. Tools that promise a rate were no alternative:
    they send in bursts (hey starts all its workers at once) or wait for answers.

    Raises:
        LoadFailed: wrk has failed, or the server has ended.
    """
    connections = int(min(MAX_CONNECTIONS, max(16, round(rate_per_s * PAUSE_S))))
    return _send_load(server, route, connections, seconds, rate_per_s)


def _send_load(
    server: ServerProcess, route: Route, connections: int, seconds: float, rate_per_s: float | None
) -> LoadFigures:
    pause_s = 0.0 if rate_per_s is None else connections / rate_per_s
    with tempfile.TemporaryDirectory(prefix="mae-bench-load-") as folder:
        files = [Path(folder) / f"{number}" for number in range(len(route.bodies))]
        for file, body in zip(files, route.bodies, strict=True):
            file.write_bytes(body)
        log = Path(folder) / "log"
        wrk = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
        # wrk counts the pause before a request as a time without an answer, so no run may be longer than this timeout.
        wrk += ["--timeout", f"{60 + seconds:.0f}s", "--script", str(SCRIPT), server.url, "--"]
        headers = "\n".join(f"{name}: {value}" for name, value in route.headers.items())
        arguments = [str(log), route.path, headers, f"{pause_s:.6f}", *map(str, files)]
        before = _ended_children_core_seconds()
        process = subprocess.Popen([*wrk, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            start = time.monotonic()
            window_start = _read_clocks(server, start + (1 - STEADY_SHARE) * seconds)
            window_end = _read_clocks(server, start + seconds - 0.05)  # shortly before the load ends
            output, _ = process.communicate(timeout=seconds + 60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode or not server.alive:
            raise LoadFailed(output.strip() if process.returncode else "the server has ended")
        return figures_of(
            log.read_text(),
            output,
            window_start,
            window_end,
            route=route.name,
            connections=connections,
            rate_per_s=rate_per_s,
            load_core_s=_ended_children_core_seconds() - before,
        )


@dataclass(frozen=True)
class Clocks:
    """The time, and what the server had used and done by then."""

    time_s: float
    """Seconds of `time.monotonic()`, the clock that the script reads too."""
    core_s: float | None
    """The server's CPU time in seconds; None where the system does not report it."""
    batches: float | None = None
    """Number of batches that have ended; None if the server did not tell."""
    batched_images: float | None = None
    """Number of images in them."""


def _read_clocks(server: ServerProcess, at: float) -> Clocks:
    """Waits until time.monotonic() is `at`, then reads both clocks."""
    time.sleep(max(0.0, at - time.monotonic()))
    now, core_s = time.monotonic(), server.core_seconds()
    return Clocks(now, core_s, *server.batches())


def _ended_children_core_seconds() -> float:
    """CPU time of the child processes that have ended, in finer steps than /proc has for a live process."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _images_per_batch(start: Clocks, end: Clocks) -> float | None:
    """Mean number of images in the batches that ended between two moments; None if there was none, or nobody knows."""
    if start.batches is None or start.batched_images is None or end.batches is None or end.batched_images is None:
        return None
    batches = end.batches - start.batches
    return (end.batched_images - start.batched_images) / batches if batches else None


def figures_of(
    log: str,
    output: str,
    start: Clocks,
    end: Clocks,
    *,
    route: str,
    connections: int,
    load_core_s: float,
    rate_per_s: float | None = None,
) -> LoadFigures:
    """The figures of the requests that were answered between two moments.

    Args:
        log: the log of the script: one line per request with its begin, end and status.
        output: the output of wrk; the script prints the last line.
        start: the clocks when the window opens.
        end: the clocks when it closes.
        route: the name of the route.
        connections: the number of connections.
        load_core_s: CPU time in seconds that sending the load took, over the whole run.
        rate_per_s: the rate of open arrivals; None for closed ones.
    """
    requests = np.array([line.split() for line in log.splitlines()], dtype=float).reshape(-1, 3)
    inside = requests[(start.time_s <= requests[:, 1]) & (requests[:, 1] < end.time_s)]
    good = inside[inside[:, 2] == 200]
    window_s, count = end.time_s - start.time_s, len(good)
    p50, p95, p99 = 1000 * np.percentile(good[:, 1] - good[:, 0], (50, 95, 99)) if count else (None, None, None)
    core_s = None if start.core_s is None or end.core_s is None else end.core_s - start.core_s
    never_answered = int(json.loads(output.strip().splitlines()[-1])["never_answered"])
    return LoadFigures(
        route=route,
        arrivals="closed" if rate_per_s is None else "open",
        connections=connections,
        asked_per_s=rate_per_s,
        images_per_s=count / window_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_batch=_images_per_batch(start, end),
        answered=count,
        failed=len(inside) - count + never_answered,
        window_s=window_s,
        core_ms=1000 * core_s / count if count and core_s is not None else None,
        server_cores=None if core_s is None else core_s / window_s,
        load_core_ms=1000 * load_core_s / len(requests) if len(requests) else None,
    )
