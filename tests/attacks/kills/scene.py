"""Processes that an attack starts and kills, and what they leave behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")
TORCH_FOLDER = "torchinductor_"
"""PyTorch makes an empty folder of this name where it is imported, one for each user."""
END_S = 10.0
"""The time in which the children of a killed process must end."""
CLOSE_S = 1.0
"""The time in which the port of an ended process must be free."""
WAIT_S = 120.0
"""The longest wait for anything else."""


class Child(NamedTuple):
    """A process that was started by the one under attack."""

    pid: int
    command: str


class Scene:
    """A folder, and the processes that were started in it: they and their children are known by a variable."""

    def __init__(self, folder: Path, seen: Counter[str], generator: random.Random) -> None:
        """Nothing runs yet.

        Args:
            folder: for all files; processes have their temporary files in it, too.
            seen: counts what was seen.
            generator: draws moments.
        """
        self.folder = folder
        self.seen = seen
        self.generator = generator
        self._mark = f"MAE-ATTACK-{uuid.uuid4().hex}"
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        self._shared = set(SHARED_MEMORY.iterdir())

    def start(self, command: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Starts a process of the product, with no settings but those in `variables`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
        environment |= {"ATTACK_MARK": self._mark, "TMPDIR": str(self._temporary), **variables}
        with log.open("wb") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def processes(self) -> list[Child]:
        """All processes of the scene that have not ended."""
        found = []
        for folder in PROC.iterdir():
            if folder.name.isdigit():
                try:
                    if self._mark.encode() in (folder / "environ").read_bytes():
                        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                        found.append(Child(int(folder.name), command))
                except OSError:  # it has ended meanwhile
                    continue
        return found

    def children(self, part: str) -> list[Child]:
        """The processes whose command contains `part`, the oldest first."""
        return sorted(child for child in self.processes() if part in child.command)

    def wait_for_child(self, part: str, process: subprocess.Popen[bytes], other_than: Sequence[Child] = ()) -> Child:
        """Waits for a process whose command contains `part`."""
        found: list[Child] = []

        def appears() -> bool:
            nonlocal found
            found = [child for child in self.children(part) if child not in other_than]
            return bool(found) or process.poll() is not None

        wait_until(appears, f"a process {part}")
        if not found:
            raise RuntimeError(f"the process has ended with {process.returncode} before it started {part}")
        return found[0]

    def wait_for_end(self, what: str) -> None:
        """Counts the processes that still run some time after `what`, and ends them."""
        end = time.monotonic() + END_S
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        for child in left:
            self.seen[f"{what}: orphan {child.command[-60:].strip()}"] += 1
            kill(child.pid)

    def check_files(self, what: str) -> None:
        """Counts what lies in the folder of temporary files, or is new in the shared memory."""
        for path in self._temporary.iterdir():
            if path.name.startswith(TORCH_FOLDER):
                continue
            self.seen[f"{what}: left file {path.name}"] += 1
            path.rename(self.folder / f"left-{uuid.uuid4().hex}")
        for path in set(SHARED_MEMORY.iterdir()) - self._shared:
            self.seen[f"{what}: left shared memory"] += 1
            self._shared.add(path)

    def check_port(self, what: str, port: int) -> None:
        """Counts a port on which nobody can listen; the kernel closes the files of an ended process a moment later."""
        end = time.monotonic() + CLOSE_S
        while not can_listen(port):
            if time.monotonic() > end:
                self.seen[f"{what}: port in use"] += 1
                return
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[bytes], what: str) -> None:
        """Kills a process with SIGKILL, and checks that nothing of it is left; counts one that has ended before."""
        process.kill()
        code = process.wait()
        self.seen["kills" if code == -signal.SIGKILL else f"{what}: had ended with {code}"] += 1
        self.wait_for_end(what)
        self.check_files(what)

    def kill_child(self, child: Child) -> None:
        """Kills a process that the attack has not started itself."""
        kill(child.pid)
        self.seen["kills"] += 1


def kill(pid: int) -> None:
    """Kills a process, if it has not ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Waits for a condition.

    Raises:
        RuntimeError: it does not come true.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.02)


def can_listen(port: int) -> bool:
    """Whether a server could listen on a port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
