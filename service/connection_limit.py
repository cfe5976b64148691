"""How many connections one process takes, so that file descriptors are left for probes."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Protocol

from service.settings import InvalidSettings, Settings

log = logging.getLogger(__name__)
DEFAULT_CONNECTIONS = 2000
LEAST_CONNECTIONS = 8
RESERVED_CONNECTIONS = 32
"""Connections above the limit: they are for probes and /metrics, and are soon closed."""
OTHER_FILES = 96
"""File descriptors of a process that are no connections, with room to spare."""
RECOVERED = 0.9
"""The part of the limit below which it counts as reached anew the next time."""


class Connection(Protocol):
    """A connection as the limit sees it."""

    transport: asyncio.Transport

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""


class ConnectionLimit:
    """The open connections of one process, of which those above the limit are reserve."""

    def __init__(self, limit: int) -> None:
        """No connection is open yet."""
        self.limit = limit
        self._open = 0
        self._reserve: dict[Connection, None] = {}
        """The connections above the limit, the oldest first."""
        self._is_reached = False

    def open(self, connection: Connection) -> bool:
        """Counts a connection; returns whether it is reserve. If that is full, an older one is closed."""
        self._open += 1
        if self._open <= self.limit:
            return False
        if not self._is_reached:
            self._is_reached = True
            log.error(
                "%d connections are open, as many as MAX_CONNECTIONS allows: only probes are answered", self.limit
            )
        if len(self._reserve) >= RESERVED_CONNECTIONS:
            oldest = next((one for one in self._reserve if not one.is_answering), next(iter(self._reserve)))
            del self._reserve[oldest]
            oldest.transport.abort()
        self._reserve[connection] = None
        return True

    def close(self, connection: Connection) -> None:
        """Counts a connection no more."""
        self._open -= 1
        self._reserve.pop(connection, None)
        if self._is_reached and self._open < RECOVERED * self.limit:
            self._is_reached = False
            log.info("%d connections are open, less than MAX_CONNECTIONS again", self._open)


def connections_per_process(settings: Settings) -> int:
    """The most connections of this process, after raising its limit on open files if they need that.

    HTTP workers have equal parts of MAX_CONNECTIONS.

    Raises:
        InvalidSettings: MAX_CONNECTIONS needs more open files than the process may have.
    """
    wanted = -(-(settings.max_connections or DEFAULT_CONNECTIONS) // max(1, settings.http_workers))
    needed = wanted + RESERVED_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed and settings.max_connections is not None:
            raise InvalidSettings(
                f"MAX_CONNECTIONS: {wanted} connections of one process need {needed} open files, but it may have {soft}"
            )
        return max(LEAST_CONNECTIONS, soft - RESERVED_CONNECTIONS - OTHER_FILES) if soft < needed else wanted
    return wanted
