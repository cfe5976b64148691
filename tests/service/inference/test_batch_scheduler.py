"""The queue between requests and lanes, with engines that do as they are told."""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.engines.base import EngineError
from service.errors import InferenceFailed, QueueFull
from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE, LocalBudget
from service.metrics import Metrics
from tests.support.engines import FakeEngine, sleep_per_batch
from tests.support.queueing import ALL_FOUR, Gate, admit, ask, image, run, run_ready_tasks, run_scheduler
from tests.support.waiting import until

# --- what batching is for


def test_a_crowd_fills_the_batches() -> None:
    """Each batch takes as long as the clients need to ask again."""
    clients = 128
    schedulers: list[BatchScheduler] = []

    def before(images: list[int]) -> None:
        while schedulers[0].waiting + len(images) < clients:
            time.sleep(0.0002)

    engine = FakeEngine(32, before=before)

    async def main() -> None:
        nonlocal clients
        async with run_scheduler(engine) as scheduler:
            schedulers.append(scheduler)

            async def client(number: int) -> None:
                nonlocal clients
                for _ in range(20):
                    await ask(scheduler, number)
                clients -= 1

            await asyncio.gather(*map(client, range(clients)))

    run(main())
    sizes = [len(images) for _, _, images in engine.batches]
    assert sum(sizes) == 128 * 20
    assert set(sizes[1:-1]) == {32}, "the next batch forms while the lane is busy"


def test_a_lone_image_waits_for_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(32)
    timeouts: list[float | None] = []
    wait = threading.Condition.wait

    def recorded(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread().name.startswith("lane-"):
            timeouts.append(timeout)
        return wait(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", recorded)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            for number in range(25):
                await ask(scheduler, number)

    run(main())
    assert engine.batches == [("embed", 4, [number]) for number in range(25)]
    assert timeouts and set(timeouts) == {None}, "a free lane sleeps until it is notified, never for a time"


def test_two_lanes_run_at_once() -> None:
    together = threading.Barrier(2, timeout=60)
    engine = FakeEngine(1, lanes=2, before=lambda images: together.wait() and None)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            await asyncio.gather(ask(scheduler, 1), ask(scheduler, 2))

    run(main())
    assert engine.max_running == 2


def test_results_are_those_of_a_lone_call_in_the_order_of_the_request() -> None:
    def noise(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (4, 768), dtype=np.uint8)

    async def main() -> list[Any]:
        async with run_scheduler(FakeEngine(5, before=sleep_per_batch(0.002))) as scheduler:
            order = list(range(24))
            random.Random(3).shuffle(order)
            with admit(scheduler, 24, "reconstruct") as call:
                for index in order:
                    call.put(index, noise(index), ALL_FOUR[:1])
                    await asyncio.sleep(0)
                return await call.results()

    for index, (pixels, error) in enumerate(run(main())):
        alone_pixels, alone_error = FakeEngine().reconstruct(0, noise(index)[None], ALL_FOUR[None, :1])
        assert np.array_equal(pixels, alone_pixels[0])
        assert np.array_equal(error, alone_error[0])


# --- who shares a batch, and who goes first


def test_operations_and_numbers_of_visible_patches_never_mix() -> None:
    gate = Gate()
    engine = FakeEngine(32, before=gate)
    kinds = [("embed", 4), ("embed", 2), ("tokens", 4), ("tokens", 1), ("reconstruct", 1), ("reconstruct", 2)]

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            tasks = [
                asyncio.create_task(ask(scheduler, 10 * kind + turn, operation=operation, visible=visible))
                for turn in range(3)
                for kind, (operation, visible) in enumerate(kinds)
            ]
            await run_ready_tasks()
            gate.opened.set()
            await asyncio.gather(first, *tasks)

    run(main())
    expected = [(op, visible, [10 * kind + turn for turn in range(3)]) for kind, (op, visible) in enumerate(kinds)]
    assert engine.batches[1:] == expected


class MixingEngine(FakeEngine):
    """Takes images with different numbers of visible patches, and keeps what it was given."""

    def __init__(self, before: Callable[[list[int]], None]) -> None:
        super().__init__(32, before=before)
        self.info = self.info.model_copy(update={"mixes": True})
        self.given: list[tuple[np.ndarray, np.ndarray]] = []

    def _answer(
        self, operation: str, patches: np.ndarray, visible_indices: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        self.given.append((patches, visible_indices))
        return super()._answer(operation, patches, visible_indices, shape)


@pytest.mark.parametrize("operation", ["embed", "tokens", "reconstruct"])
def test_an_engine_that_mixes_gets_about_the_same_numbers_of_patches_together(operation: str) -> None:
    gate = Gate()
    engine = MixingEngine(gate)

    async def main() -> list[Any]:
        async with run_scheduler(engine) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            numbers = [(visible, 10 * visible + turn) for turn in range(2) for visible in (3, 1, 4, 2)]
            tasks = [
                asyncio.create_task(ask(scheduler, number, operation=operation, visible=visible))
                for visible, number in numbers
            ]
            await run_ready_tasks()
            gate.opened.set()
            rows = await asyncio.gather(*tasks)
            await first
            return [(visible, number, row) for (visible, number), (row,) in zip(numbers, rows, strict=True)]

    answers = run(main())
    assert [batch[1:] for batch in engine.batches[1:]] == [(4, [30, 40, 31, 41]), (1, [10, 11]), (2, [20, 21])]
    patches, visible_indices = engine.given[1]
    assert visible_indices.tolist() == [[0, 1, 2, -1], [0, 1, 2, 3]] * 2
    assert (patches[0, :3] == 30).all() and (patches[3] == 41).all()
    for visible, number, row in answers:
        if operation == "tokens":
            assert np.array_equal(row, np.full((visible, 8), number)), "no token of a place without a patch"
        elif operation == "embed":
            assert np.array_equal(row, np.full((2, 8), number))
        else:
            assert (row[0] == number).all() and (row[1] == number).all()


def test_requests_of_a_group_take_turns() -> None:
    gate = Gate()
    engine = FakeEngine(6, before=gate)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            tasks = [
                asyncio.create_task(ask(scheduler, *[number] * count)) for number, count in ((1, 9), (2, 3), (3, 2))
            ]
            await run_ready_tasks()
            gate.opened.set()
            await asyncio.gather(first, *tasks)

    run(main())
    assert [images for _, _, images in engine.batches[1:]] == [[1, 2, 3, 1, 2, 3], [1, 2, 1, 1, 1, 1], [1, 1]]


@pytest.mark.parametrize("other", [{}, {"visible": 2}, {"operation": "tokens"}, {"operation": "reconstruct"}])
def test_a_single_image_does_not_wait_behind_a_request_of_many(other: dict[str, Any]) -> None:
    turns = threading.Semaphore(2)
    engine = FakeEngine(4, before=lambda images: turns.acquire(timeout=60) and None)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            many = asyncio.create_task(ask(scheduler, *[1] * 64))
            await until(lambda: len(engine.batches) == 3)
            single = asyncio.create_task(ask(scheduler, 2, **other))
            await run_ready_tasks()
            turns.release(64)
            await asyncio.gather(many, single)
            first = next(number for number, (_, _, images) in enumerate(engine.batches) if 2 in images)
            assert first <= 4, "three batches had begun, and one may go first"

    run(main())
    assert sum(images.count(1) for _, _, images in engine.batches) == 64


def test_two_big_requests_of_different_groups_alternate() -> None:
    gate = Gate()
    engine = FakeEngine(4, before=gate)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            tasks = [asyncio.create_task(ask(scheduler, *[k] * 12, visible=k)) for k in (1, 2)]
            await run_ready_tasks()
            gate.opened.set()
            await asyncio.gather(first, *tasks)

    run(main())
    assert [visible for _, visible, _ in engine.batches[1:]] == [1, 2, 1, 2, 1, 2]


def test_images_of_one_request_must_have_one_number_of_visible_patches() -> None:
    async def main() -> None:
        async with run_scheduler(FakeEngine()) as scheduler:
            with admit(scheduler, 2, "embed") as call:
                call.put(0, image(1), ALL_FOUR)
                with pytest.raises(ValueError, match="same number of visible patches"):
                    call.put(1, image(1, 2), ALL_FOUR[:2])

    run(main())


# --- max_delay


def test_max_delay_lets_a_batch_fill() -> None:
    engine = FakeEngine(3)

    async def main() -> None:
        async with run_scheduler(engine, max_delay_s=3600) as scheduler:
            await asyncio.gather(*(ask(scheduler, number) for number in range(3)))

    run(main())
    assert engine.batches == [("embed", 4, [0, 1, 2])], "a full batch does not wait for the hour"


def test_max_delay_ends_a_wait() -> None:
    engine = FakeEngine(32)

    async def main() -> None:
        async with run_scheduler(engine, max_delay_s=0.05) as scheduler:
            await asyncio.gather(ask(scheduler, 1), ask(scheduler, 2, visible=1))

    run(main())
    assert sorted(engine.batches) == [("embed", 1, [2]), ("embed", 4, [1])]


# --- the end


def test_stop_finishes_what_waits() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> list[Any]:
        async with run_scheduler(engine, max_delay_s=60) as scheduler:
            tasks = [asyncio.create_task(ask(scheduler, number)) for number in range(5)]
            await gate.wait_until_reached()
            threading.Timer(0.05, gate.opened.set).start()
            scheduler.stop(10)
            return [rows[0][0, 0] for rows in await asyncio.gather(*tasks)]

    assert run(main()) == list(range(5))


def test_stop_leaves_a_lane_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    async def main() -> None:
        scheduler = BatchScheduler(FakeEngine(2, before=gate), Metrics(), LocalBudget(8 * IMAGE))
        scheduler.start()
        task = asyncio.create_task(ask(scheduler, 1))
        await gate.wait_until_reached()
        scheduler.stop(0.1)  # returns, although the gate is closed
        gate.opened.set()
        await task

    run(main())
    assert "lane-0 is still running a batch" in caplog.text


@pytest.mark.slow
def test_ten_thousand_random_operations_leave_nothing_behind() -> None:
    generator = random.Random(20)
    poison = 13

    def before(images: list[int]) -> None:
        if poison in images:
            raise EngineError("a bad image")

    async def request(scheduler: BatchScheduler) -> str:
        operation = generator.choice(["embed", "tokens", "reconstruct"])
        visible, count = generator.randint(1, 4), generator.choice([1, 1, 1, 2, 5, 17])
        numbers = [generator.randint(0, 200) for _ in range(count)]
        deadline = time.monotonic() + generator.choice([math.inf, math.inf, 0.002, -1.0])
        try:
            with admit(scheduler, count, operation, deadline) as call:
                order = list(range(count))
                generator.shuffle(order)
                for index in order:
                    if generator.random() < 0.01:
                        return "abandoned while decoding"
                    if generator.random() < 0.2:
                        await asyncio.sleep(0)
                    put_patches = image(numbers[index], 4 if operation == "reconstruct" else visible)
                    call.put(index, put_patches, ALL_FOUR[:visible])
                patience = generator.choice([5.0, 5.0, 0.001]) if deadline == math.inf else 0.005
                rows = await asyncio.wait_for(call.results(), patience)
        except (TimeoutError, QueueFull, InferenceFailed) as error:
            return type(error).__name__
        firsts = [row[-1].flat[0] if isinstance(row, tuple) else row.flat[0] for row in rows]
        assert firsts == numbers
        return "answered"

    async def main() -> set[str]:
        async with run_scheduler(FakeEngine(8, lanes=2, before=before), queue_images=64) as scheduler:
            seen: set[str] = set()

            async def client() -> None:
                for _ in range(250):
                    seen.add(await request(scheduler))
                    await asyncio.sleep(0)

            await asyncio.gather(*(client() for _ in range(40)))
            return seen

    assert run(main()) == {"answered", "abandoned while decoding", "TimeoutError", "QueueFull", "InferenceFailed"}
