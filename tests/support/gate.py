"""A gate for an engine in another process: a test closes it, sends requests in an order of its own, and opens it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.002


class FileGate:
    """Open at first. While it is closed, whoever calls `wait_at_gate` waits."""

    def __init__(self, file: Path) -> None:
        """`file` exists while the gate is closed, and does not yet."""
        self.file = file

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Closes the gate, and opens it in the end."""
        self.file.touch()
        try:
            yield
        finally:
            self.file.unlink()


def wait_at_gate(variable: str) -> None:
    """Waits as long as the gate is closed whose file is the value of this environment variable, if it has one."""
    while is_closed(variable):
        time.sleep(POLL_S)


def is_closed(variable: str) -> bool:
    """Whether the gate is closed whose file is the value of this environment variable."""
    return variable in os.environ and os.path.exists(os.environ[variable])
