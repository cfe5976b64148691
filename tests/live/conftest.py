"""Real servers: `mae serve` in a process of its own, on a free port of 127.0.0.1."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from service.benchmark.processes import MAE_SERVE as CHECKOUT_SERVE
from tests.support.gate import FileGate
from tests.support.metrics import sample

BESIDE = Path(sys.executable).with_name("mae")
SCRIPT = str(BESIDE) if BESIDE.exists() else shutil.which("mae")  # an image keeps it elsewhere
MAE_SERVE = [SCRIPT, "serve"] if SCRIPT else list(CHECKOUT_SERVE)  # a checkout that is not installed has no script
SECONDS = 60
"""How long a test waits for what must happen: a machine may be slow, or stand still for a while."""

# Clients of httpx wait as long, too; by default they wait for 5 seconds.
DEFAULT_TIMEOUT = inspect.signature(httpx.Client).parameters["timeout"].default
for part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT, part, SECONDS)
LATE_WORKER = "have not sent their counters"
"""Part of what the log says of a scrape that lacks the latest counts of a worker."""


class LiveServer:
    """A server process, its address and its log."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stderr=out, stdout=out)
        self.url = ""

    def wait_until_listening(self, seconds: float = SECONDS) -> None:
        def listening() -> bool:
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", self.text()):
                self.url = found[1]
            return bool(found)

        self.wait_for(listening, seconds)

    def wait_until_ready(self, seconds: float = 300) -> None:
        self.wait_for(lambda: httpx.get(self.url + "/readyz").status_code == 200, seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Returns once `condition` is true; fails if the server ends, or after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < end, f"waited {seconds} s in vain:\n{self.text()}"
            time.sleep(0.02)

    def text(self) -> str:
        return self.log.read_text()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a sample over those labels that are not given, read by prometheus-client's own parser.

        A request is counted a moment after its answer: use `wait_for_metric`.
        """
        return sample(self.exposition(), name, **labels)

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Returns once the metric has this value."""
        end = time.monotonic() + SECONDS
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < end, f"{name} is {found}, and not {value}:\n{self.text()}"
            time.sleep(0.02)

    def exposition(self, client: httpx.Client | None = None) -> str:
        """All metrics, over the connection of `client` if there is one.

        If a worker was late with its counters, the server is asked again: older ones would count in their place.
        """
        end = time.monotonic() + SECONDS
        while True:
            late = self.text().count(LATE_WORKER)
            exposition = (client or httpx).get(self.url + "/metrics").text
            if self.text().count(LATE_WORKER) == late:
                return exposition
            assert time.monotonic() < end, "a worker never sends its counters in time"

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1000

    def terminate(self, seconds: float = SECONDS) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


Start = Callable[..., LiveServer]


@pytest.fixture(scope="session")
def start_server(engine_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers with settings given as keywords, and ends them after the tests.

    `fake` serves an engine of `fake_server.py` with these variables; `module` runs another server in place of `mae
    serve`; `ready=False` waits for the listener alone. They serve in float32, whatever is fastest on this CPU, and make
    no joined lane, which each of them would compile and check. With the variable FAKE_GATE, requests may wait for ten
    minutes, and so may a drain.
    """
    servers: list[LiveServer] = []

    def start(
        fake: Mapping[str, object] | None = None, ready: bool = True, module: str | None = None, **settings: object
    ) -> LiveServer:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
        given = {"host": "127.0.0.1", "port": 0, "engine_cache": engine_cache, "precision": "fp32"}
        given |= {"joined_lane": "off"}
        if "FAKE_GATE" in (fake or {}):
            given |= {"request_timeout_s": 600, "drain_timeout_s": 600}
        given |= settings
        environment |= {f"MAE_{name.upper()}": str(value) for name, value in given.items()}
        environment |= {name: str(value) for name, value in (fake or {}).items()}
        module = module or (None if fake is None else "tests.support.fake_server")
        command = MAE_SERVE if module is None else [sys.executable, "-m", module]
        server = LiveServer(command, environment, tmp_path_factory.mktemp("server") / "log")
        servers.append(server)
        server.wait_until_listening()
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> FileGate:
    """For servers with the variable FAKE_GATE."""
    return FileGate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="session")
def server(start_server: Start, probe: Path, warm_cache: Path) -> LiveServer:
    """The probe model. Its batches have up to 4 images, whatever this machine measures."""
    return start_server(weights=probe, max_batch=4)


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
