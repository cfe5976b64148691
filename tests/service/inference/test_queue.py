"""Places in the queue: taken, refused, given back, and lost to a deadline."""

import asyncio
import math
import time

import pytest

from service.errors import QueueFull, TooManyImages
from tests.support.engines import FakeEngine
from tests.support.queueing import Gate, ask, gauge, put, run, serving, settled


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
