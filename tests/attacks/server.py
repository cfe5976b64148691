"""A real server with a fake engine for the attacks, and raw requests to it."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.benchmark.processes import MAE_SERVE
from tests.attacks.processes import start_time

START_S = 180
MAE = MAE_SERVE[:-1]
"""The command `mae`."""
PHOTO = (Path(__file__).parents[1] / "data/chelsea.jpg").read_bytes()
PROBE = Path(__file__).parents[1] / "data/mae_probe_tiny.safetensors"
"""Weights of which the package has no graphs: an engine of them is converted."""


class AttackedServer:
    """The process, its port and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = int(self._wait_for(r"running on http://127\.0\.0\.1:(\d+)"))
        self._wait_for("ready after")
        end = time.monotonic() + START_S
        while httpx.get(f"{self.url}/readyz", timeout=START_S).status_code != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not get ready:\n{self.log}")
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def metric(self, name: str) -> float:
        """The sum of a metric, of which `name` may name some labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(name, line))

    def exchange(self, sent: bytes, timeout_s: float = 10, ends: bool = False) -> bytes:
        """What the server sends until it closes the connection; `ends`: the client ends its side first.

        `timeout_s` is for all of it: what a server sends a byte at a time does not prolong it.
        """
        end = time.monotonic() + timeout_s
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as one:
            received = b""
            try:
                one.sendall(sent)
                if ends:
                    one.shutdown(socket.SHUT_WR)
                while chunk := one.recv(65536):
                    received += chunk
                    one.settimeout(max(0.001, end - time.monotonic()))
            except OSError as error:
                return received + type(error).__name__.encode()
        return received

    def _wait_for(self, pattern: str) -> str:
        end = time.monotonic() + START_S
        while not (found := re.search(pattern, self.log)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not start:\n{self.log}")
            time.sleep(0.05)
        return found[found.re.groups]


@contextmanager
def serve(
    open_files: int | None = None,
    fake: dict[str, str] | None = None,
    real: bool = False,
    enter: Callable[[], None] | None = None,
    log_folder: Path | None = None,
    module: str = "tests.support.fake_server",
    **settings: Any,
) -> Iterator[AttackedServer]:
    """A server with at most `open_files` file descriptors; it is killed at the end.

    Its engine is `real`, with the packaged model, or a fake one whose batches take a millisecond. `fake` has further
    variables of its environment, such as those of `tests.support.fake_server`. The process calls `enter` before it
    becomes the server, whose log lies in `log_folder`. A server with a fake engine is run by `module`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
    environment |= {f"MAE_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"MAE_HOST": "127.0.0.1", "MAE_PORT": "0", "FAKE_S": "0.001", **(fake or {})}

    def limit() -> None:
        if open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
        if enter:
            enter()

    with tempfile.TemporaryDirectory(prefix="mae-attack-", dir=log_folder) as folder:
        log = Path(folder) / "log"
        command = list(MAE_SERVE) if real else [sys.executable, "-m", module]
        with log.open("wb") as out:
            before = limit if open_files or enter else None  # without it no Python code runs in the child
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, preexec_fn=before)
        try:
            yield AttackedServer(process, log)
        finally:
            process.kill()
            process.wait()


def post(body: bytes, *headers: str, path: str = "/embed") -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def status(answer: bytes) -> str:
    """The status of an answer, past an interim one; or the error of the connection, or "closed"."""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    return answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else answer.decode("latin-1") or "closed"


def describe(answer: httpx.Response) -> str:
    """The status of an answer, with the code of an error."""
    code = "" if answer.status_code == 200 else answer.json().get("error", {}).get("code", "")
    return f"{answer.status_code} {code}".strip()


def report(name: str, seen: Counter[str], expected: Collection[str]) -> int:
    """Prints how long this process has run and how often each thing was seen.

    Returns an exit code: 1 if a thing was seen that is not expected, or nothing at all.
    """
    started_s = start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    counts = {what: count for what, count in seen.items() if count}
    described = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{name}, {time.clock_gettime(time.CLOCK_BOOTTIME) - started_s:.0f} s: {described}")
    return 0 if counts and counts.keys() <= set(expected) else 1
