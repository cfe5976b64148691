"""What every test of the service leaves as it found it, and connections for the tests of HTTP."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.connections import Connection


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Commands configure logging for a process of their own; here they share one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def connect() -> Iterator[Callable[[Callable[[Connection], Any]], None]]:
    """Plays a test on a new connection, and checks that neither a timer nor a task is left over."""

    def run(play: Callable[[Connection], Any]) -> None:
        async def main() -> None:
            connection = Connection()
            await play(connection)
            assert connection.transport.closed or connection.loop.armed, "nothing would ever close the connection"
            connection.protocol.connection_lost(None)
            assert not connection.loop.armed, "a timer outlives its connection"
            for task in list(connection.state.tasks):
                await task

        asyncio.run(asyncio.wait_for(main(), 20))

    yield run
