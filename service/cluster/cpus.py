"""CPUs of a node, shared out among the processes that Ray runs there.

Ray counts CPUs but does not hold a process to them: each engine would take all CPUs of its node for its lanes.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


class ClaimedCPUs:
    """CPUs that this process alone may use, among all processes of this machine that claim theirs.

    Each CPU is a file that is locked as long as it is claimed, so a process that dies gives its CPUs back.
    """

    def __init__(self, count: float, folder: Path | None = None) -> None:
        """Restricts this process, with all its threads to come, to `count` CPUs.

        Nothing is restricted where the process may use no more CPUs than that, or where others have claimed them.

        Args:
            count: CPUs that Ray has assigned to this process; a part of one counts as a whole one, and 0 as all.
            folder: of the lock files; all processes that share a machine must have the same.
        """
        self._locks: list[int] = []
        self.cpus: frozenset[int] = frozenset()
        """The CPUs that were claimed; none where nothing is restricted."""
        allowed = sorted(os.sched_getaffinity(0))
        wanted = math.ceil(count)
        if not 0 < wanted < len(allowed):
            return
        folder = folder or Path(tempfile.gettempdir()) / f"mae-serve-cpus-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        claimed: list[int] = []
        for cpu in allowed:
            if len(claimed) < wanted and self._lock(folder / str(cpu)):
                claimed.append(cpu)
        if len(claimed) < wanted:
            log.warning(
                "only %d of %d CPUs are free of other engines: this one shares all of them", len(claimed), wanted
            )
            self.release()
            return
        self.cpus = frozenset(claimed)
        os.sched_setaffinity(0, self.cpus)

    def release(self) -> None:
        """Lets other processes claim the CPUs. The restriction stays."""
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks = []

    def _lock(self, path: Path) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True
