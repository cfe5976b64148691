"""Server processes of one's own: started on a free port of 127.0.0.1, their processor time read, killed in the end."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.benchmark import null_engine
from service.settings import PREFIX, Settings

PROC = Path("/proc")
LISTENING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
# -P: what lies in the current folder is not imported. The same function as `mae` itself, wherever that script lies.
MAE_SERVE = (sys.executable, "-P", "-c", "from service.cli.main import main; main()", "serve")
READY_S = 300.0
"""Within this a server is ready, its engine read from the cache or built."""
PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """A server that did not come up, or ended by itself; the message has the end of its log."""


class ServerProcess:
    """A server, ready for requests."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        """One that listens at `url`."""
        self.url = url
        self._process = process

    def core_seconds(self) -> float | None:
        """Processor time so far, user and system, of the server and all processes that it has started; Linux only."""
        return core_seconds(self._process.pid)

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None


def core_seconds(pid: int, proc: Path = PROC) -> float | None:
    """Seconds of processors that `pid` and its descendants have used, None where the kernel does not tell."""
    if not (proc / str(pid) / "stat").is_file():
        return None
    spent: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                # The name, in parentheses, may hold spaces; after it: state, parent, …, utime and stime.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                spent[int(folder.name)] = int(fields[11]) + int(fields[12])
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return sum(spent.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def environment_of(settings: Settings, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a server with `settings`, on a free port of 127.0.0.1 and without keys.

    Only what was set is passed on, so that a server of another revision, with other settings, keeps its own defaults.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    given |= {"host": "127.0.0.1", "port": 0, "log_format": "text"}
    given.pop("api_keys", None)
    own = {name: value for name, value in inherited.items() if not name.startswith(PREFIX)}
    return own | {PREFIX + name.upper(): _text(value) for name, value in given.items() if value is not None}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], ready_s: float = READY_S
) -> Iterator[ServerProcess]:
    """Runs a server until the block is left, however it is left.

    Args:
        command: what to run; it logs where it listens.
        environment: its variables.
        ready_s: until `/readyz` says yes.

    Raises:
        ServerFailed: it does not come up.
    """
    with tempfile.TemporaryFile(prefix="mae-bench-log-") as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_ends_with_parent(),
        )
        try:
            end = time.monotonic() + ready_s
            url = _awaited(lambda: _url(log), process, log, end)
            _awaited(lambda: _is_ready(url), process, log, end)
            yield ServerProcess(process, url)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the workers of a server too
            process.wait()


def serving(settings: Settings, python_path: str | None = None) -> Any:
    """`mae serve` with `settings`: a context as of `running`; `python_path` takes another checkout's code."""
    return running(MAE_SERVE, _with_path(environment_of(settings), python_path))


def serving_nothing(settings: Settings, info: Path, python_path: str | None = None) -> Any:
    """The same server with an engine that answers at once, in the form of the engine that `info` describes as JSON."""
    # By its file, so that other code than this can be measured with it.
    command = (sys.executable, "-P", str(null_engine.__file__), str(info))
    return running(command, _with_path(environment_of(settings), python_path))


def _with_path(environment: dict[str, str], python_path: str | None) -> dict[str, str]:
    return environment if python_path is None else {**environment, "PYTHONPATH": python_path}


def _ends_with_parent() -> Callable[[], None] | None:
    """For the child: that the kernel kills it when this process is killed and cannot do it itself."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork: after it, little is safe
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _url(log: Any) -> str | None:
    found = LISTENING.search(_logged(log))
    return found[1] if found else None


def _is_ready(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=10) as response:
            return bool(response.status == 200) or None
    except OSError:  # loading: 503
        return None


def _awaited(look: Callable[[], Any], process: subprocess.Popen[bytes], log: Any, end: float) -> Any:
    while (found := look()) is None:
        if process.poll() is not None or time.monotonic() > end:
            what = "is not ready in time" if process.poll() is None else f"has ended with {process.returncode}"
            raise ServerFailed(f"the server {what}: {_logged(log).strip()[-2000:]}")
        time.sleep(0.05)
    return found


def _logged(log: Any) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")
