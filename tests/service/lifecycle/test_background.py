"""Tasks beside the requests: none ends unnoticed."""

import asyncio

import pytest

from service.lifecycle.background import BackgroundTasks
from tests.support.queueing import run
from tests.support.waiting import until


def test_a_task_that_fails_is_logged_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[str] = []

    async def fail() -> None:
        raise RuntimeError("no such luck")

    async def succeed() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        tasks = BackgroundTasks(reasons.append)
        tasks.start(succeed())
        tasks.start(fail())
        await until(lambda: reasons)

    run(main())
    assert reasons == ["a background task has failed: no such luck"]
    assert "RuntimeError" in caplog.text


def test_a_cancelled_task_is_no_failure() -> None:
    reasons: list[str] = []

    async def main() -> None:
        tasks, cancelled = BackgroundTasks(reasons.append), asyncio.Event()

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        tasks.start(wait())
        await asyncio.sleep(0)
        tasks.cancel()
        await asyncio.wait_for(cancelled.wait(), 60)
        await asyncio.sleep(0)

    run(main())
    assert not reasons
