"""The queue between requests and lanes, with engines that do as they are told."""

import asyncio
import contextlib
import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.engines.base import EngineError, FatalEngineError
from service.batcher import Batcher
from service.errors import EngineLost, InferenceFailed, QueueFull, ServiceError, TooManyImages
from service.metrics import Metrics
from service.ticket import Ticket
from tests.engines import FakeEngine, costing

ALL_FOUR = np.arange(4, dtype=np.int32)


def image(number: int, patches: int = 4) -> np.ndarray:
    return np.full((patches, 16 * 16 * 3), number, dtype=np.uint8)


def put(ticket: Ticket, numbers: list[int], visible: int = 4) -> None:
    for index, number in enumerate(numbers):
        ticket.put(index, image(number, visible if ticket.operation != "reconstruct" else 4), ALL_FOUR[:visible])


async def ask(
    batcher: Batcher, *numbers: int, visible: int = 4, operation: Any = "embed", deadline: float = math.inf
) -> list[Any]:
    with batcher.admit(operation, len(numbers), deadline) as ticket:
        put(ticket, list(numbers), visible)
        return await ticket.rows()


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, queue_images: int = 512, **settings: Any) -> AsyncIterator[Batcher]:
    """A started batcher, which must be empty in the end."""
    batcher = Batcher(engine, Metrics(), queue_images, **settings)
    batcher.start()
    try:
        yield batcher
        assert gauge(batcher, "mae_queue_images") == 0
        assert gauge(batcher, "mae_admitted_images") == 0
    finally:
        batcher.stop(5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


def gauge(batcher: Batcher, name: str, **labels: str) -> float:
    """As Prometheus would see it."""
    text = batcher._metrics.render().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


class Gate:
    """Holds every batch up until it is opened; `before` of an engine."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, images: list[int]) -> None:
        self.reached.set()
        assert self.opened.wait(10)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)


async def settled() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- what batching is for


def test_a_crowd_keeps_the_lane_full() -> None:
    engine = FakeEngine(32, before=costing(0.020, 0.0001))
    ideal = 32 / 0.0232  # images a second

    async def main() -> float:
        async with serving(engine) as batcher:
            end = time.monotonic() + 2

            async def client(number: int) -> int:
                answered = 0
                while time.monotonic() < end:
                    await ask(batcher, number)
                    answered += 1
                return answered

            start = time.monotonic()
            answered = sum(await asyncio.gather(*map(client, range(128))))
            return answered / (time.monotonic() - start)

    throughput = run(main())
    sizes = [len(images) for _, _, images in engine.batches]
    assert throughput >= 0.9 * ideal
    assert statistics.mean(sizes) >= 28
    assert max(sizes) == 32


def test_a_lone_image_does_not_wait() -> None:
    async def main() -> float:
        async with serving(FakeEngine(32)) as batcher:
            waits = []
            for _ in range(25):
                await asyncio.sleep(0.01)
                with batcher.admit("embed", 1, math.inf) as ticket:
                    put(ticket, [1])
                    await ticket.rows()
                    waits.append(ticket.timing.queue)
            return statistics.median(waits)

    assert run(main()) < 0.002


def test_two_lanes_run_at_once() -> None:
    together = threading.Barrier(2, timeout=10)
    engine = FakeEngine(1, lanes=2, before=lambda images: together.wait() and None)

    async def main() -> None:
        async with serving(engine) as batcher:
            await asyncio.gather(ask(batcher, 1), ask(batcher, 2))

    run(main())
    assert engine.most_running == 2


def test_results_are_those_of_a_lone_call_in_the_order_of_the_request() -> None:
    def noise(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (4, 768), dtype=np.uint8)

    async def main() -> list[Any]:
        async with serving(FakeEngine(5, before=costing(0.002))) as batcher:
            order = list(range(24))
            random.Random(3).shuffle(order)
            with batcher.admit("reconstruct", 24, math.inf) as ticket:
                for index in order:
                    ticket.put(index, noise(index), ALL_FOUR[:1])
                    await asyncio.sleep(0)
                return await ticket.rows()

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
        async with serving(engine) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            tasks = [
                asyncio.create_task(ask(batcher, 10 * kind + turn, operation=operation, visible=visible))
                for turn in range(3)
                for kind, (operation, visible) in enumerate(kinds)
            ]
            await settled()
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

    def _answer(self, operation: str, patches: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        self.given.append((patches, positions))
        return super()._answer(operation, patches, positions, shape)


@pytest.mark.parametrize("operation", ["embed", "tokens", "reconstruct"])
def test_an_engine_that_mixes_gets_about_the_same_numbers_of_patches_together(operation: str) -> None:
    gate = Gate()
    engine = MixingEngine(gate)

    async def main() -> list[Any]:
        async with serving(engine) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            numbers = [(visible, 10 * visible + turn) for turn in range(2) for visible in (3, 1, 4, 2)]
            tasks = [
                asyncio.create_task(ask(batcher, number, operation=operation, visible=visible))
                for visible, number in numbers
            ]
            await settled()
            gate.opened.set()
            rows = await asyncio.gather(*tasks)
            await first
            return [(visible, number, row) for (visible, number), (row,) in zip(numbers, rows, strict=True)]

    answers = run(main())
    assert [batch[1:] for batch in engine.batches[1:]] == [(4, [30, 40, 31, 41]), (1, [10, 11]), (2, [20, 21])]
    patches, positions = engine.given[1]
    assert positions.tolist() == [[0, 1, 2, -1], [0, 1, 2, 3]] * 2
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
        async with serving(engine) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            tasks = [asyncio.create_task(ask(batcher, *[number] * count)) for number, count in ((1, 9), (2, 3), (3, 2))]
            await settled()
            gate.opened.set()
            await asyncio.gather(first, *tasks)

    run(main())
    assert [images for _, _, images in engine.batches[1:]] == [[1, 2, 3, 1, 2, 3], [1, 2, 1, 1, 1, 1], [1, 1]]


@pytest.mark.parametrize("other", [{}, {"visible": 2}, {"operation": "tokens"}, {"operation": "reconstruct"}])
def test_a_single_image_does_not_wait_behind_a_request_of_many(other: dict[str, Any]) -> None:
    engine = FakeEngine(4, before=costing(0.005))

    async def main() -> None:
        async with serving(engine) as batcher:
            many = asyncio.create_task(ask(batcher, *[1] * 64))
            while len(engine.batches) < 3:
                await asyncio.sleep(0.001)
            begun = len(engine.batches)
            await ask(batcher, 2, **other)
            first = next(number for number, (_, _, images) in enumerate(engine.batches) if 2 in images)
            assert first - begun <= 2, "one batch may have begun meanwhile, and one may go first"
            await many

    run(main())
    assert sum(images.count(1) for _, _, images in engine.batches) == 64


def test_two_big_requests_of_different_groups_alternate() -> None:
    gate = Gate()
    engine = FakeEngine(4, before=gate)

    async def main() -> None:
        async with serving(engine) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            tasks = [asyncio.create_task(ask(batcher, *[k] * 12, visible=k)) for k in (1, 2)]
            await settled()
            gate.opened.set()
            await asyncio.gather(first, *tasks)

    run(main())
    assert [visible for _, visible, _ in engine.batches[1:]] == [1, 2, 1, 2, 1, 2]


def test_images_of_one_ticket_must_have_one_number_of_visible_patches() -> None:
    async def main() -> None:
        async with serving(FakeEngine()) as batcher:
            with batcher.admit("embed", 2, math.inf) as ticket:
                ticket.put(0, image(1), ALL_FOUR)
                with pytest.raises(ValueError, match="same number of visible patches"):
                    ticket.put(1, image(1, 2), ALL_FOUR[:2])

    run(main())


# --- max_delay


def test_max_delay_lets_a_batch_fill() -> None:
    engine = FakeEngine(3)

    async def main() -> float:
        async with serving(engine, max_delay_s=20) as batcher:
            start = time.monotonic()
            await asyncio.gather(*(ask(batcher, number) for number in range(3)))
            return time.monotonic() - start

    assert run(main()) < 10, "a full batch waits for nobody"
    assert engine.batches == [("embed", 4, [0, 1, 2])]


def test_max_delay_counts_from_the_oldest() -> None:
    engine = FakeEngine(32)

    async def main() -> tuple[float, float]:
        async with serving(engine, max_delay_s=0.4) as batcher:
            start = time.monotonic()
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(ask(batcher, number)))
                await asyncio.sleep(0.1)
            await tasks[0]
            elapsed = time.monotonic() - start
            await asyncio.gather(*tasks)
            return elapsed, len(engine.batches[0][2])

    elapsed, size = run(main())
    assert elapsed < 0.75, "each newcomer must not put it off again"
    assert 3 <= size <= 5


def test_a_full_batch_does_not_wait_for_another_group_to_fill() -> None:
    engine = FakeEngine(4)

    async def main() -> float:
        async with serving(engine, max_delay_s=1.5) as batcher:
            lone = asyncio.create_task(ask(batcher, 1, visible=1))
            await asyncio.sleep(0.05)
            start = time.monotonic()
            await ask(batcher, 2, 2, 2, 2)
            elapsed = time.monotonic() - start
            await lone
            return elapsed

    assert run(main()) < 0.7
    assert [visible for _, visible, _ in engine.batches] == [4, 1]


# --- places


def test_more_than_the_queue_can_ever_hold_is_too_many() -> None:
    async def main() -> None:
        async with serving(FakeEngine(), queue_images=8) as batcher:
            with pytest.raises(TooManyImages) as refusal:
                batcher.admit("embed", 9, math.inf)
            assert refusal.value.status == 413
            assert refusal.value.details == {"limit": 8}
            with batcher.admit("embed", 8, math.inf):
                pass

    run(main())


def test_a_full_queue_refuses_before_anything_is_put() -> None:
    async def main() -> None:
        async with serving(FakeEngine(), queue_images=8) as batcher:
            with batcher.admit("embed", 5, math.inf) as ticket:
                assert gauge(batcher, "mae_admitted_images") == 5
                assert gauge(batcher, "mae_queue_images") == 0
                with pytest.raises(QueueFull) as refusal:
                    batcher.admit("embed", 4, math.inf)
                assert (refusal.value.status, refusal.value.headers) == (429, {"retry-after": "1"})
                with batcher.admit("embed", 3, math.inf):
                    pass
                put(ticket, [1] * 5)
                await ticket.rows()
                with batcher.admit("embed", 8, math.inf):
                    pass

    run(main())


def test_an_abandoned_request_enters_no_batch_and_gives_its_place_back() -> None:
    gate = Gate()
    engine = FakeEngine(32, before=gate)

    async def main() -> None:
        async with serving(engine, queue_images=8) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            abandoned, kept = asyncio.create_task(ask(batcher, *[7] * 6)), asyncio.create_task(ask(batcher, 8))
            await settled()
            assert gauge(batcher, "mae_queue_images") == 7
            abandoned.cancel()
            await settled()
            assert gauge(batcher, "mae_queue_images") == gauge(batcher, "mae_admitted_images") == 1
            assert gauge(batcher, "mae_dropped_images_total", reason="abandoned") == 6
            gate.opened.set()
            await asyncio.gather(first, kept)
            with pytest.raises(asyncio.CancelledError):
                await abandoned

    run(main())
    assert [images for _, _, images in engine.batches] == [[255], [8]]


def test_what_is_put_after_giving_up_enters_no_batch() -> None:
    engine = FakeEngine()

    async def main() -> None:
        async with serving(engine) as batcher:
            with batcher.admit("embed", 2, math.inf) as ticket:
                pass
            put(ticket, [7, 7])
            await ask(batcher, 8)

    run(main())
    assert engine.batches == [("embed", 4, [8])]


def test_an_image_whose_deadline_has_passed_enters_no_batch() -> None:
    gate = Gate()
    engine = FakeEngine(32, before=gate)

    async def main() -> None:
        async with serving(engine, queue_images=8) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            late = asyncio.create_task(ask(batcher, 7, 7, deadline=time.monotonic() + 0.05))
            kept = asyncio.create_task(ask(batcher, 8, deadline=time.monotonic() + 60))
            await asyncio.sleep(0.1)
            gate.opened.set()
            await asyncio.gather(first, kept)
            # Whoever set the deadline has not given up yet, but the places are free already.
            assert not late.done()
            assert gauge(batcher, "mae_admitted_images") == gauge(batcher, "mae_queue_images") == 0
            late.cancel()
            await settled()
            assert gauge(batcher, "mae_dropped_images_total", reason="deadline") == 2

    run(main())
    assert [images for _, _, images in engine.batches] == [[255], [8]]


def test_many_late_requests_do_not_keep_the_others_waiting() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> None:
        async with serving(engine) as batcher:
            first = asyncio.create_task(ask(batcher, 255))
            await gate.wait_until_reached()
            soon = time.monotonic() + 0.01
            late = [asyncio.create_task(ask(batcher, 7, deadline=soon)) for _ in range(9)]
            kept = [asyncio.create_task(ask(batcher, 8)) for _ in range(2)]
            await asyncio.sleep(0.05)
            gate.opened.set()
            await asyncio.gather(first, *kept)
            for task in late:
                task.cancel()
            await settled()

    run(main())
    assert not any(7 in images for _, _, images in engine.batches)


# --- engines that fail


def failing(
    condition: Callable[[list[int]], bool], error: BaseException, times: float = math.inf
) -> Callable[[list[int]], None]:
    failures = itertools.count()

    def before(images: list[int]) -> None:
        if condition(images) and next(failures) < times:
            raise error

    return before


async def outcomes(batcher: Batcher, numbers: list[int]) -> list[Any]:
    """What lone requests for each of `numbers` got: the number answered, or the error."""
    rows = await asyncio.gather(*(ask(batcher, number) for number in numbers), return_exceptions=True)
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
        async with serving(engine, max_delay_s=20) as batcher:
            found = await outcomes(batcher, list(range(16)))
            assert gauge(batcher, "mae_engine_failures_total") >= 1
            assert await outcomes(batcher, list(range(100, 116))) == list(range(100, 116))
            return found

    found = run(main())
    assert found[:13] + found[14:] == [*range(13), 14, 15]
    assert isinstance(found[13], InferenceFailed)
    assert found[13].details == {"image": 0}
    assert engine.batches[0] == ("embed", 4, list(range(16)))


def test_a_poisoned_image_is_named_within_its_request() -> None:
    engine = FakeEngine(16, before=failing(lambda images: 13 in images, EngineError("a bad image")))

    async def main() -> None:
        async with serving(engine) as batcher:
            with pytest.raises(InferenceFailed, match="image 2") as failure:
                await ask(batcher, 1, 2, 13, 4)
            assert failure.value.details == {"image": 2}

    run(main())


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_passing_failure_is_nobodys(count: int) -> None:
    engine = FakeEngine(count, before=failing(lambda images: True, EngineError("only this once"), times=1))

    async def main() -> list[Any]:
        async with serving(engine, max_delay_s=20) as batcher:
            return await outcomes(batcher, list(range(count)))

    assert run(main()) == list(range(count))


def test_an_engine_that_cannot_take_large_batches_still_answers() -> None:
    engine = FakeEngine(16, before=failing(lambda images: len(images) > 4, EngineError("out of memory")))

    async def main() -> list[Any]:
        async with serving(engine, max_delay_s=20) as batcher:
            return await outcomes(batcher, list(range(16)))

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
        async with serving(engine, queue_images=20, on_lost=reasons.append) as batcher:
            with batcher.admit("embed", 1, math.inf) as undecoded:
                for failure in await outcomes(batcher, list(range(12))):
                    assert isinstance(failure, EngineLost)
                with pytest.raises(EngineLost):
                    put(undecoded, [1])
            with pytest.raises(EngineLost, match="no more"):
                batcher.admit("embed", 1, math.inf)
            await settled()

    run(main())
    assert len(reasons) == 1
    assert "no more" in reasons[0]


def test_an_engine_that_answers_nothing_but_nan_is_lost() -> None:
    reasons: list[str] = []
    engine = FakeEngine(4)
    engine.embed = lambda lane, patches, positions: np.full((len(patches), 2, 8), np.nan, np.float32)  # type: ignore[method-assign]

    async def main() -> None:
        async with serving(engine, on_lost=reasons.append) as batcher:
            assert all(isinstance(failure, ServiceError) for failure in await outcomes(batcher, [1, 2, 3, 4]))
            await settled()
            with pytest.raises(EngineLost):
                batcher.admit("embed", 1, math.inf)

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
        async with serving(FakeEngine(4, before=before), max_delay_s=20) as batcher:
            assert all(isinstance(failure, EngineLost) for failure in await outcomes(batcher, [1, 2, 3, 4]))

    run(main())


def test_lanes_that_are_lost_together_are_one_loss() -> None:
    together = threading.Barrier(2, timeout=10)
    reasons: list[str] = []

    def before(images: list[int]) -> None:
        together.wait()
        raise FatalEngineError("no more")

    async def main() -> None:
        async with serving(FakeEngine(1, lanes=2, before=before), on_lost=reasons.append) as batcher:
            await outcomes(batcher, [1, 2])
            batcher.stop(5)
            await settled()

    run(main())
    assert len(reasons) == 1


def test_every_request_gets_an_error_of_its_own() -> None:
    engine = FakeEngine(8, before=failing(lambda images: True, FatalEngineError("no more")))

    async def main() -> list[Any]:
        async with serving(engine) as batcher:
            return await outcomes(batcher, list(range(8)))

    failures = run(main())
    assert len({id(failure) for failure in failures}) == 8, "one raised in many tasks gathers all their tracebacks"


# --- the end


def test_stop_finishes_what_waits() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> list[Any]:
        async with serving(engine, max_delay_s=60) as batcher:
            tasks = [asyncio.create_task(ask(batcher, number)) for number in range(5)]
            await gate.wait_until_reached()
            threading.Timer(0.05, gate.opened.set).start()
            batcher.stop(10)
            return [rows[0][0, 0] for rows in await asyncio.gather(*tasks)]

    assert run(main()) == list(range(5))


def test_stop_leaves_a_lane_that_hangs() -> None:
    gate = Gate()

    async def main() -> float:
        batcher = Batcher(FakeEngine(2, before=gate), Metrics(), 8)
        batcher.start()
        task = asyncio.create_task(ask(batcher, 1))
        await gate.wait_until_reached()
        start = time.monotonic()
        batcher.stop(0.1)
        elapsed = time.monotonic() - start
        gate.opened.set()
        await task
        return elapsed

    assert run(main()) < 5


def test_ten_thousand_random_operations_leave_nothing_behind() -> None:
    generator = random.Random(20)
    poison = 13

    def before(images: list[int]) -> None:
        if poison in images:
            raise EngineError("a bad image")

    async def request(batcher: Batcher) -> str:
        operation = generator.choice(["embed", "tokens", "reconstruct"])
        visible, count = generator.randint(1, 4), generator.choice([1, 1, 1, 2, 5, 17])
        numbers = [generator.randint(0, 200) for _ in range(count)]
        deadline = time.monotonic() + generator.choice([math.inf, math.inf, 0.002, -1.0])
        try:
            with batcher.admit(operation, count, deadline) as ticket:
                order = list(range(count))
                generator.shuffle(order)
                for index in order:
                    if generator.random() < 0.01:
                        return "abandoned while decoding"
                    if generator.random() < 0.2:
                        await asyncio.sleep(0)
                    put_patches = image(numbers[index], 4 if operation == "reconstruct" else visible)
                    ticket.put(index, put_patches, ALL_FOUR[:visible])
                patience = generator.choice([5.0, 5.0, 0.001]) if deadline == math.inf else 0.005
                rows = await asyncio.wait_for(ticket.rows(), patience)
        except (TimeoutError, QueueFull, InferenceFailed) as error:
            return type(error).__name__
        firsts = [row[-1].flat[0] if isinstance(row, tuple) else row.flat[0] for row in rows]
        assert firsts == numbers
        return "answered"

    async def main() -> set[str]:
        async with serving(FakeEngine(8, lanes=2, before=before), queue_images=64) as batcher:
            seen: set[str] = set()

            async def client() -> None:
                for _ in range(250):
                    seen.add(await request(batcher))
                    await asyncio.sleep(0)

            await asyncio.gather(*(client() for _ in range(40)))
            return seen

    assert run(main()) == {"answered", "abandoned while decoding", "TimeoutError", "QueueFull", "InferenceFailed"}
