"""Server processes for measurements: each is started on a free port of 127.0.0.1, and killed in the end."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from service.settings import PREFIX, Settings

T = TypeVar("T")
PROC = Path("/proc")
NULL_ENGINE = Path(__file__).with_name("null_engine.py")
LISTENING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
# -P keeps modules of the current folder from being imported. This calls the function behind the script `mae`, which may
# not be on the path.
MAE_SERVE = (sys.executable, "-P", "-c", "from service.cli.main import main; main()", "serve")
READY_S = 300.0
"""Seconds that a server may take to be ready, including the time to build an engine."""
PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """The server did not become ready, or it ended by itself; the message has the end of its log."""


class ServerProcess:
    """A running server that is ready for requests."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        """Describes a `process` that listens at `url`."""
        self.url = url
        self._process = process

    def core_seconds(self) -> float | None:
        """CPU time so far in seconds, of the server and all processes that it has started; None except on Linux."""
        return core_seconds(self._process.pid)

    def batches(self) -> tuple[float, float] | tuple[None, None]:
        """Number of batches that have ended, and of their images; None if the server does not answer in time."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return None, None
        count, images = (
            sum(map(float, re.findall(rf"^mae_batch_size_{part}{{.*}} (\S+)$", text, re.MULTILINE)))
            for part in ("count", "sum")
        )
        return count, images

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None


def core_seconds(pid: int, proc: Path = PROC) -> float | None:
    """CPU time in seconds, user and system, of process `pid` and its descendants; None where `proc` lacks it."""
    if not (proc / str(pid) / "stat").is_file():
        return None
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # the process has ended meanwhile
                # The name, in parentheses, may hold spaces; after it come state, parent, …, utime and stime.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [pid]
    for member in family:  # the list grows meanwhile: children of children follow
        family += children.get(member, [])
    return sum(ticks.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def environment_of(settings: Settings, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a server with `settings`, on a free port of 127.0.0.1 and without API keys.

    Only settings that were set explicitly are passed on, so that a server of another revision keeps its own defaults.
    """
    explicit = {name: getattr(settings, name) for name in settings.model_fields_set}
    explicit |= {"host": "127.0.0.1", "port": 0, "log_format": "text"}
    for name in ("api_keys", "api_keys_file", "key_max_requests", "key_images_per_s", "keyed_paths"):
        explicit.pop(name, None)
    others = {name: value for name, value in inherited.items() if not name.startswith(PREFIX)}
    return others | {PREFIX + name.upper(): _text(value) for name, value in explicit.items() if value is not None}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


@contextmanager
def run_server(
    command: Sequence[str], environment: Mapping[str, str], ready_s: float = READY_S
) -> Iterator[ServerProcess]:
    """Runs a server until the block is left, by an exception too.

    Args:
        command: the program and its arguments; the server logs the address where it listens.
        environment: the environment variables of the process.
        ready_s: seconds after which `/readyz` must have answered 200.

    Raises:
        ServerFailed: the server ends, or is not ready in time.
    """
    with tempfile.TemporaryFile(prefix="mae-bench-log-") as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        try:
            deadline = time.monotonic() + ready_s
            url = _wait_for(lambda: _listening_url(log), process, log, deadline)
            _wait_for(lambda: _is_ready(url), process, log, deadline)
            yield ServerProcess(process, url)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # kills the server's workers too
            process.wait()


def serve_model(
    settings: Settings, command: Sequence[str] = MAE_SERVE, python_path: Path | None = None
) -> AbstractContextManager[ServerProcess]:
    """Runs `mae serve` with `settings`, as `run_server` does.

    Args:
        settings: the server's settings.
        command: the program that serves; it takes its settings from the environment.
        python_path: a folder with the code of another checkout, which the process imports instead of this one.
    """
    return run_server(command, _with_python_path(environment_of(settings), python_path))


def serve_null_engine(
    settings: Settings, info: Path, program: Path = NULL_ENGINE, python_path: Path | None = None
) -> AbstractContextManager[ServerProcess]:
    """Runs the real server around an engine that answers at once (`null_engine.py`), as `run_server` does.

    Args:
        settings: the server's settings.
        info: a JSON file that describes the engine to imitate, an `EngineInfo`.
        program: the file `null_engine.py`, of another checkout if `python_path` is given.
        python_path: as for `serve_model`.
    """
    command = (sys.executable, "-P", str(program), str(info))
    return run_server(command, _with_python_path(environment_of(settings), python_path))


def _with_python_path(environment: dict[str, str], python_path: Path | None) -> dict[str, str]:
    return environment if python_path is None else {**environment, "PYTHONPATH": str(python_path)}


def _die_with_parent() -> Callable[[], None] | None:
    """A function for the child process: it asks the kernel to kill the child when this process dies (Linux only)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it, few calls are safe
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listening_url(log: IO[bytes]) -> str | None:
    match = LISTENING.search(_read_log(log))
    return match[1] if match else None


def _is_ready(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=10) as response:
            return bool(response.status == 200) or None
    except OSError:  # 503 while the engine is loading
        return None


def _wait_for(poll: Callable[[], T | None], process: subprocess.Popen[bytes], log: IO[bytes], deadline: float) -> T:
    """Calls `poll` until it returns a result, and returns that.

    Raises:
        ServerFailed: the process has ended, or the deadline has passed.
    """
    while (result := poll()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            reason = "is not ready in time" if process.poll() is None else f"has ended with {process.returncode}"
            raise ServerFailed(f"the server {reason}: {_read_log(log).strip()[-2000:]}")
        time.sleep(0.05)
    return result


def _read_log(log: IO[bytes]) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
