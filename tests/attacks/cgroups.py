"""Control groups, by which attacks give processes little of a machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def make_group(folder: Path) -> Iterator[Path | None]:
    """The folder of a cgroup, which is removed in the end; None where this process may make none."""
    try:
        if folder.is_dir():  # a run that was killed has left it, with its counts
            folder.rmdir()
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        for _ in range(100):
            try:
                folder.rmdir()
                break
            except OSError:  # the processes in it have not quite ended
                time.sleep(0.1)


def enter(group: Path) -> Callable[[], None]:
    """A function by which a process moves itself into a cgroup."""

    def move() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return move
