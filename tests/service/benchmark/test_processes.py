"""Server processes: their settings, their CPU time, and that none is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.benchmark.processes import ServerFailed, core_seconds, environment_of, run_server
from service.settings import load_settings

pytestmark = pytest.mark.live

TICKS = os.sysconf("SC_CLK_TCK")
# Listens and logs its address as a server does, and starts a worker, whose id it writes into a file.
SERVER = """
import http.server, subprocess, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *arguments): pass
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(worker.pid))
server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
print(f"Uvicorn running on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int) -> None:
    end = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_cpu_time_of_a_process_and_all_below_it(tmp_path: Path) -> None:
    """1 has 2 and 3, 2 has 4; 5 is another's. Names may hold anything."""
    for pid, name, parent, user, system in (
        (1, "server", 9, 100, 50),
        (2, "a (worker) x", 1, 10, 5),
        (3, "b", 1, 20, 0),
        (4, ") 7 7 7", 2, 0, 15),
        (5, "other", 9, 1000, 1000),
    ):
        (tmp_path / str(pid)).mkdir()
        numbers = " ".join(["0"] * 9)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} {numbers} {user} {system} 7 7 20 0\n")
    (tmp_path / "self").mkdir()
    assert core_seconds(1, tmp_path) == pytest.approx(200 / TICKS)
    assert core_seconds(2, tmp_path) == pytest.approx(30 / TICKS)
    assert core_seconds(77, tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_cpu_time_is_what_the_process_itself_measures() -> None:
    """A process is busy for 0.3 s, prints the CPU time that it has used, and waits."""
    program = """
import sys, time
while time.process_time() < 0.3: pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as child:  # type: ignore[call-overload]
        used = float(child.stdout.readline())
        assert core_seconds(child.pid) == pytest.approx(used, abs=0.05)
        child.stdin.close()


def test_a_server_gets_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    settings = load_settings(
        weights="w.safetensors",
        max_delay_ms=2.5,
        preprocess={"resize": "squash"},
        engine_cache=tmp_path,
        cuda_graphs=False,
        api_keys="secret",
        host="0.0.0.0",
        port=80,
    )
    environment = environment_of(settings, {"PATH": "/bin", "MAE_API_KEYS": "secret", "MAE_PORT": "80"})
    assert environment == {
        "PATH": "/bin",
        "MAE_WEIGHTS": "w.safetensors",
        "MAE_MAX_DELAY_MS": "2.5",
        "MAE_PREPROCESS": '{"resize": "squash"}',
        "MAE_ENGINE_CACHE": str(tmp_path),
        "MAE_CUDA_GRAPHS": "False",
        "MAE_HOST": "127.0.0.1",
        "MAE_PORT": "0",
        "MAE_LOG_FORMAT": "text",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_nothing_is_left_even_when_the_measurement_fails(tmp_path: Path) -> None:
    file = tmp_path / "worker"
    with (
        pytest.raises(ZeroDivisionError),
        run_server([sys.executable, "-c", SERVER, str(file)], os.environ) as server,
    ):
        worker = int(file.read_text())
        assert server.alive and alive(worker) and server.url.startswith("http://127.0.0.1:")
        raise ZeroDivisionError
    assert not server.alive
    wait_until_dead(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel does this")
def test_a_server_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    program = f"""
import os, sys, time
from service.benchmark.processes import run_server
with run_server([sys.executable, "-c", {SERVER!r}, {str(file)!r}], os.environ) as server:
    print(server._process.pid, flush=True)
    time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent.stdout:
        server = int(parent.stdout.readline())
    assert alive(server)
    parent.kill()
    parent.wait()
    wait_until_dead(server)
    os.kill(int(file.read_text()), signal.SIGKILL)  # the worker of this test's own server, which does not end it


def test_a_server_that_does_not_become_ready_gives_the_reason() -> None:
    with (
        pytest.raises(ServerFailed, match="has ended with 3: no such weights"),
        run_server([sys.executable, "-c", "import sys; print('no such weights'); sys.exit(3)"], os.environ),
    ):
        pass
    with (
        pytest.raises(ServerFailed, match="is not ready in time"),
        run_server([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, ready_s=0.1),
    ):
        pass
