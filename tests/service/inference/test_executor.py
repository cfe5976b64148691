"""Engines that fail: who is to blame, and what happens to the others."""

import asyncio
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.engines.base import EngineError, FatalEngineError
from service.errors import EngineLost, InferenceFailed, ServiceError
from service.inference.batch_scheduler import BatchScheduler
from service.inference.pending_results import PendingResults
from tests.support.engines import FakeEngine
from tests.support.queueing import Gate, admit, ask, gauge, run, run_ready_tasks, run_scheduler


def failing(
    condition: Callable[[list[int]], bool], error: BaseException, times: float = math.inf
) -> Callable[[list[int]], None]:
    failures = itertools.count()

    def before(images: list[int]) -> None:
        if condition(images) and next(failures) < times:
            raise error

    return before


async def outcomes(scheduler: BatchScheduler, numbers: list[int]) -> list[Any]:
    """What lone requests for each of `numbers` got: the number answered, or the error."""
    rows = await asyncio.gather(*(ask(scheduler, number) for number in numbers), return_exceptions=True)
    return [row if isinstance(row, BaseException) else row[0][0, 0] for row in rows]


@pytest.mark.parametrize(
    "engine",
    [
        FakeEngine(16, before=failing(lambda images: 13 in images, EngineError("a bad image"))),
        FakeEngine(16, before=failing(lambda images: 13 in images, ZeroDivisionError("any exception"))),
        FakeEngine(16, not_a_number=13),
    ],
    ids=["EngineError", "another exception", "NaN"],
)
def test_a_poisoned_image_fails_alone(engine: FakeEngine) -> None:
    async def main() -> list[Any]:
        async with run_scheduler(engine, max_delay_s=20) as scheduler:
            found = await outcomes(scheduler, list(range(16)))
            assert gauge(scheduler, "mae_engine_failures_total") >= 1
            assert await outcomes(scheduler, list(range(100, 116))) == list(range(100, 116))
            return found

    found = run(main())
    assert found[:13] + found[14:] == [*range(13), 14, 15]
    assert isinstance(found[13], InferenceFailed)
    assert found[13].details == {"image": 0}
    assert engine.batches[0] == ("embed", 4, list(range(16)))


def test_a_poisoned_image_is_named_within_its_request() -> None:
    engine = FakeEngine(16, before=failing(lambda images: 13 in images, EngineError("a bad image")))

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            with pytest.raises(InferenceFailed, match="image 2") as failure:
                await ask(scheduler, 1, 2, 13, 4)
            assert failure.value.details == {"image": 2}

    run(main())


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_passing_failure_is_nobodys(count: int) -> None:
    engine = FakeEngine(count, before=failing(lambda images: True, EngineError("only this once"), times=1))

    async def main() -> list[Any]:
        async with run_scheduler(engine, max_delay_s=20) as scheduler:
            return await outcomes(scheduler, list(range(count)))

    assert run(main()) == list(range(count))


@pytest.mark.parametrize("error", [EngineError("the GPU has not enough memory"), MemoryError("cannot allocate")])
def test_a_batch_that_is_too_large_for_the_memory_is_tried_again_in_smaller_ones(error: Exception) -> None:
    engine = FakeEngine(16, before=failing(lambda images: len(images) > 4, error))

    async def main() -> list[Any]:
        async with run_scheduler(engine, max_delay_s=20) as scheduler:
            return await outcomes(scheduler, list(range(16)))

    assert run(main()) == list(range(16))


GREY = 128  # the probe's


@pytest.mark.parametrize(
    "engine",
    [
        FakeEngine(2, before=failing(lambda images: True, EngineError("no more"))),
        FakeEngine(2, before=failing(lambda images: True, FatalEngineError("no more"), times=1)),
        FakeEngine(2, before=failing(lambda images: True, SystemExit("no more"))),
        FakeEngine(2, before=failing(lambda images: True, MemoryError("no more"))),
    ],
    ids=["always", "fatal once", "BaseException", "MemoryError"],
)
def test_a_lost_engine_fails_all_that_waits_and_refuses_what_comes(engine: FakeEngine) -> None:
    reasons: list[str] = []

    async def main() -> None:
        async with run_scheduler(engine, queue_images=20, on_lost=reasons.append) as scheduler:
            with admit(scheduler, 1) as undecoded:
                for failure in await outcomes(scheduler, list(range(12))):
                    assert isinstance(failure, EngineLost)
                with pytest.raises(EngineLost):
                    undecoded.put_all([1])
            with pytest.raises(EngineLost, match="no more"):
                scheduler.admit("embed", 1, math.inf, PendingResults(1))
            await run_ready_tasks()

    run(main())
    assert len(reasons) == 1
    assert "no more" in reasons[0]


def test_an_engine_that_answers_nothing_but_nan_is_lost() -> None:
    reasons: list[str] = []
    engine = FakeEngine(4)
    engine.embed = lambda lane, patches, visible_indices: np.full((len(patches), 2, 8), np.nan, np.float32)  # type: ignore[method-assign]

    async def main() -> None:
        async with run_scheduler(engine, on_lost=reasons.append) as scheduler:
            assert all(isinstance(failure, ServiceError) for failure in await outcomes(scheduler, [1, 2, 3, 4]))
            await run_ready_tasks()
            with pytest.raises(EngineLost):
                scheduler.admit("embed", 1, math.inf, PendingResults(1))

    run(main())
    assert len(reasons) == 1
    assert "finite" in reasons[0]


def test_a_fatal_error_while_looking_for_the_culprit_loses_the_engine() -> None:
    def before(images: list[int]) -> None:
        if len(images) == 4:
            raise EngineError("first a batch")
        if images != [GREY]:
            raise FatalEngineError("then the device")

    async def main() -> None:
        async with run_scheduler(FakeEngine(4, before=before), max_delay_s=20) as scheduler:
            assert all(isinstance(failure, EngineLost) for failure in await outcomes(scheduler, [1, 2, 3, 4]))

    run(main())


def test_a_lane_that_hangs_is_left_behind_when_the_engine_is_declared_lost() -> None:
    gate, reasons = Gate(), list[str]()

    async def main() -> None:
        async with run_scheduler(FakeEngine(1, before=gate), on_lost=reasons.append) as scheduler:
            asked = [asyncio.create_task(ask(scheduler, number)) for number in (1, 2)]
            await gate.wait_until_reached()
            await asyncio.to_thread(scheduler.lose, "lane 0 hangs")
            for request in asked:
                with pytest.raises(EngineLost, match="lane 0 hangs"):
                    await request
            with pytest.raises(EngineLost, match="lane 0 hangs"):
                scheduler.admit("embed", 1, math.inf, PendingResults(1))
            gate.opened.set()  # a late result disturbs nobody

    run(main())
    assert reasons == ["lane 0 hangs"]


def test_lanes_that_are_lost_together_are_one_loss() -> None:
    together = threading.Barrier(2, timeout=60)
    reasons: list[str] = []

    def before(images: list[int]) -> None:
        together.wait()
        raise FatalEngineError("no more")

    async def main() -> None:
        async with run_scheduler(FakeEngine(1, lanes=2, before=before), on_lost=reasons.append) as scheduler:
            await outcomes(scheduler, [1, 2])
            scheduler.stop(5)
            await run_ready_tasks()

    run(main())
    assert len(reasons) == 1


def test_every_request_gets_an_error_of_its_own() -> None:
    engine = FakeEngine(8, before=failing(lambda images: True, FatalEngineError("no more")))

    async def main() -> list[Any]:
        async with run_scheduler(engine) as scheduler:
            return await outcomes(scheduler, list(range(8)))

    failures = run(main())
    assert len({id(failure) for failure in failures}) == 8, "one raised in many tasks gathers all their tracebacks"
