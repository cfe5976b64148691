"""The service in one process, as the routes see it."""

import asyncio
import signal
import threading
from typing import Any

import pytest

from model.engines.base import ServedModel
from service.errors import Draining, EngineLost, NotReady
from service.service import LocalService
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.queueing import run
from tests.support.waiting import until


def test_requests_are_refused_until_the_engine_is_there_and_once_it_leaves() -> None:
    loaded = threading.Event()

    def build(settings: Any, report: Any) -> Any:
        report("pretending to build")
        assert loaded.wait(60)
        return ServedModel(FakeEngine())

    async def main() -> None:
        service = LocalService(Settings(decode_threads=1), build)
        service.start()
        await until(lambda: service.progress == "pretending to build")
        with pytest.raises(NotReady, match="pretending to build"):
            _ = service.pipeline
        loaded.set()
        await until(lambda: service.state == "ready")
        assert service.pipeline.info == FakeEngine().info
        assert b"mae_ready 1.0" in service.exposition()
        service.handle_signal(signal.SIGTERM)
        assert service.state == "draining"
        with pytest.raises(Draining):
            _ = service.pipeline
        await until(lambda: service.exit_code == 0)
        await service.close()

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("lane-", "decode"))]


def test_requests_are_refused_when_the_engine_is_lost() -> None:
    def build(settings: Any, report: Any) -> Any:
        raise RuntimeError("no memory")

    async def main() -> None:
        service, changed = LocalService(Settings(), build), asyncio.Event()
        service.subscribe(changed.set)
        service.start()
        await until(lambda: service.exit_code is not None)
        assert service.exit_code == 1 and changed.is_set()
        with pytest.raises(EngineLost, match="the engine cannot be loaded: no memory"):
            _ = service.pipeline
        await service.close()

    run(main())
