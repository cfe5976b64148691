"""The process around the app: how it ends."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from model.engines.base import ServedModel
from service.server import SIGNALS, LocalServer, drain_signals, leave
from service.service import LocalService
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.queueing import run
from tests.support.waiting import until


class Exited(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The threads that seem to run; `os._exit` raises Exited."""
    running = [SimpleNamespace(name="MainThread")]

    def exit_now(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(threading, "enumerate", lambda: running)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(os, "_exit", exit_now)
    return running


def test_a_process_without_other_threads_ends_as_usual(threads: list[Any]) -> None:
    assert leave(0) == 0


@pytest.mark.parametrize(("code", "thread"), [(1, ""), (0, "decode_0"), (1, "decode_0"), (0, "load")])
def test_after_a_failure_or_beside_another_thread_it_ends_at_once(threads: list[Any], code: int, thread: str) -> None:
    threads += [SimpleNamespace(name=thread)] if thread else []
    with pytest.raises(Exited) as exited:
        leave(code)
    assert exited.value.args == (code,)


@pytest.fixture
def _hears_sighup() -> Iterator[None]:
    """The suite itself may have been started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hears_sighup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_begins_a_drain_and_the_drain_ends_the_server(number: signal.Signals) -> None:
    service = LocalService(Settings(decode_threads=1), lambda settings, report: ServedModel(FakeEngine()))
    server = LocalServer(SimpleNamespace(state=SimpleNamespace(service=service)))  # type: ignore[arg-type]
    before = [signal.getsignal(number) for number in SIGNALS]

    async def main() -> None:
        with server.capture_signals():
            service.start()
            await until(lambda: service.state == "ready")
            os.kill(os.getpid(), number)
            await until(lambda: service.state == "draining")
            assert not server.should_exit
            await until(lambda: server.should_exit)
        await asyncio.sleep(0)
        await service.close()

    run(main())
    assert service.exit_code == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.usefixtures("_hears_sighup")
def test_under_nohup_the_end_of_a_terminal_stays_ignored() -> None:
    assert drain_signals() == (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert drain_signals() == (signal.SIGTERM, signal.SIGINT)
