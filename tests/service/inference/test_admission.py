"""Room in the queue: reserved, refused, released, and lost to a deadline."""

import asyncio
import contextlib
import math
import time

import pytest

from service.errors import QueueFull, TooManyImages
from service.inference.pending_results import PendingResults
from tests.support.engines import FakeEngine
from tests.support.queueing import Gate, admit, ask, gauge, reserved_images, run, run_ready_tasks, run_scheduler

SHARES = (1.0, 0.5, 0.25)


def test_more_than_the_queue_can_ever_hold_is_too_many() -> None:
    async def main() -> None:
        async with run_scheduler(FakeEngine(), queue_images=8) as scheduler:
            with pytest.raises(TooManyImages) as refusal:
                scheduler.admit("embed", 9, math.inf, PendingResults(9))
            assert refusal.value.status == 413
            assert refusal.value.details == {"limit": 8}
            with admit(scheduler, 8):
                pass

    run(main())


def test_a_full_queue_refuses_before_anything_is_put() -> None:
    async def main() -> None:
        async with run_scheduler(FakeEngine(), queue_images=8) as scheduler:
            with admit(scheduler, 5) as call:
                assert reserved_images(scheduler) == 5
                assert gauge(scheduler, "mae_queue_images") == 0
                with pytest.raises(QueueFull) as refusal:
                    scheduler.admit("embed", 4, math.inf, PendingResults(4))
                assert (refusal.value.status, refusal.value.headers) == (429, {"retry-after": "1"})
                with admit(scheduler, 3):
                    pass
                call.put_all([1] * 5)
                await call.results()
                with admit(scheduler, 8):
                    pass

    run(main())


def test_the_fuller_the_queue_the_smaller_the_share_of_an_image() -> None:
    async def main() -> None:
        async with run_scheduler(FakeEngine(), queue_images=8) as scheduler:
            with contextlib.ExitStack() as stack:
                admitted = [stack.enter_context(admit(scheduler, 1, shares=SHARES)) for _ in range(16)]
                assert [call.request.share for call in admitted] == [1] * 4 + [0.5] * 4 + [0.25] * 8
                assert reserved_images(scheduler) == 8
                with pytest.raises(QueueFull, match="8 images are waiting and 1 more are too many"):
                    scheduler.admit("embed", 1, math.inf, PendingResults(1), shares=SHARES)

    run(main())


def test_an_image_counts_as_less_where_it_does_not_fit_otherwise() -> None:
    async def main() -> None:
        async with run_scheduler(FakeEngine(), queue_images=8) as scheduler:
            with admit(scheduler, 8, shares=SHARES) as whole:  # nothing waits, so there is no load
                assert whole.request.share == 1
            with admit(scheduler, 3), admit(scheduler, 6, shares=SHARES) as half:
                assert half.request.share == 0.5 and reserved_images(scheduler) == 6
                with admit(scheduler, 8, shares=SHARES) as quarter:
                    assert quarter.request.share == 0.25 and reserved_images(scheduler) == 8
                with admit(scheduler, 2):  # who allows no smaller share may fill the queue
                    pass
            with pytest.raises(TooManyImages):  # not even without load would it be whole
                scheduler.admit("embed", 9, math.inf, PendingResults(9), shares=SHARES)

    run(main())


def test_an_image_that_counts_as_less_gives_back_no_more_than_that() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> None:
        async with run_scheduler(engine, queue_images=8) as scheduler:
            with contextlib.ExitStack() as stack:
                first, _ = stack.enter_context(admit(scheduler, 1)), stack.enter_context(admit(scheduler, 7))
                first.put_all([255])
                await gate.wait_until_reached()
                degraded = stack.enter_context(admit(scheduler, 4, shares=SHARES))
                assert reserved_images(scheduler) == 8  # 7 whole ones and 4 quarters
                degraded.put_all([1, 2, 3, 4], visible=1)
                gate.opened.set()
                await degraded.results()
                assert reserved_images(scheduler) == 7
            with admit(scheduler, 4, shares=(0.3,)):
                assert reserved_images(scheduler) == pytest.approx(1.2, abs=4e-3)
            assert reserved_images(scheduler) == 0

    run(main())


def test_an_abandoned_request_enters_no_batch_and_gives_its_place_back() -> None:
    gate = Gate()
    engine = FakeEngine(32, before=gate)

    async def main() -> None:
        async with run_scheduler(engine, queue_images=8) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            abandoned, kept = asyncio.create_task(ask(scheduler, *[7] * 6)), asyncio.create_task(ask(scheduler, 8))
            await run_ready_tasks()
            assert gauge(scheduler, "mae_queue_images") == 7
            abandoned.cancel()
            await run_ready_tasks()
            assert gauge(scheduler, "mae_queue_images") == reserved_images(scheduler) == 1
            assert gauge(scheduler, "mae_dropped_images_total", reason="abandoned") == 6
            gate.opened.set()
            await asyncio.gather(first, kept)
            with pytest.raises(asyncio.CancelledError):
                await abandoned

    run(main())
    assert [images for _, _, images in engine.batches] == [[255], [8]]


def test_what_is_put_after_giving_up_enters_no_batch() -> None:
    engine = FakeEngine()

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            with admit(scheduler, 2) as call:
                pass
            call.put_all([7, 7])
            await ask(scheduler, 8)

    run(main())
    assert engine.batches == [("embed", 4, [8])]


def test_an_image_whose_deadline_has_passed_enters_no_batch() -> None:
    gate = Gate()
    engine = FakeEngine(32, before=gate)

    async def main() -> None:
        async with run_scheduler(engine, queue_images=8) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            late = asyncio.create_task(ask(scheduler, 7, 7, deadline=time.monotonic() + 0.05))
            kept = asyncio.create_task(ask(scheduler, 8, deadline=time.monotonic() + 60))
            await asyncio.sleep(0.1)
            gate.opened.set()
            await asyncio.gather(first, kept)
            # Whoever set the deadline has not given up yet, but the places are free already.
            assert not late.done()
            assert reserved_images(scheduler) == gauge(scheduler, "mae_queue_images") == 0
            late.cancel()
            await run_ready_tasks()
            assert gauge(scheduler, "mae_dropped_images_total", reason="deadline") == 2

    run(main())
    assert [images for _, _, images in engine.batches] == [[255], [8]]


def test_many_late_requests_do_not_keep_the_others_waiting() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> None:
        async with run_scheduler(engine) as scheduler:
            first = asyncio.create_task(ask(scheduler, 255))
            await gate.wait_until_reached()
            soon = time.monotonic() + 0.01
            late = [asyncio.create_task(ask(scheduler, 7, deadline=soon)) for _ in range(9)]
            kept = [asyncio.create_task(ask(scheduler, 8)) for _ in range(2)]
            await asyncio.sleep(0.05)
            gate.opened.set()
            await asyncio.gather(first, *kept)
            for task in late:
                task.cancel()
            await run_ready_tasks()

    run(main())
    assert not any(7 in images for _, _, images in engine.batches)
