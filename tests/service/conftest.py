"""What every test of the service leaves as it found it, connections for the tests of HTTP, and no settings at all."""

import asyncio
import logging
import os
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

        asyncio.run(asyncio.wait_for(main(), 60))

    yield run


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment without settings, and without a platform's variables for some of them."""
    for variable in [name for name in os.environ if name.upper().startswith("MAE_")]:
        monkeypatch.delenv(variable)
    for variable in ("PORT", "AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"):
        monkeypatch.delenv(variable, raising=False)
