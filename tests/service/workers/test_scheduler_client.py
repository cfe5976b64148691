"""A worker's queue: as the one of a single process, but that its images and results cross in slots."""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.engines.base import FatalEngineError
from service.errors import EngineLost, InferenceFailed, QueueFull, ServiceError, TooManyImages
from service.inference.limits import IMAGE
from service.inference.pending_results import PendingResults
from tests.service.workers.conftest import Pair, connected
from tests.support.engines import FakeEngine
from tests.support.metrics import sample
from tests.support.queueing import ALL_FOUR, Gate, admit, image, run


async def all_slots_are_back(pair: Pair, count: int) -> None:
    """A request of as many images as there are slots, twice over, would wait for good if one were missing."""
    assert [row[0, 0] for row in await pair.ask(*range(2 * count))] == list(range(2 * count))
    assert len(pair.client._free) == count


@pytest.mark.parametrize("operation", ["embed", "tokens", "reconstruct"])
@pytest.mark.parametrize("visible", [4, 1])
def test_results_come_back_in_order_with_fewer_slots_than_images(operation: str, visible: int) -> None:
    async def main() -> None:
        async with connected(FakeEngine(4), slots=3) as pair:
            numbers = list(range(1, 11))
            rows = await pair.ask(*numbers, operation=operation, visible=visible)
            for number, row in zip(numbers, rows, strict=True):
                if operation == "reconstruct":
                    pixels, error = row
                    assert pixels.shape == (4, 768) and (pixels == number).all() and (error == number).all()
                else:
                    assert row.shape == (2 if operation == "embed" else visible, 8)
                    assert (row == number).all()

    run(main())


def test_a_result_is_a_copy_of_its_slot() -> None:
    async def main() -> None:
        async with connected(FakeEngine(4), slots=1) as pair:
            first = await pair.ask(1)
            await pair.ask(2)
            assert (first[0] == 1).all()

    run(main())


def test_requests_that_share_a_batch_do_not_mix() -> None:
    async def main() -> None:
        async with connected(FakeEngine(16), slots=8) as pair:
            asked = [pair.ask(number, number + 1, number + 2) for number in range(0, 90, 3)]
            answers = [[row[0, 0] for row in rows] for rows in await _in_tens(asked)]
            assert answers == [[number, number + 1, number + 2] for number in range(0, 90, 3)]

    async def _in_tens(asked: list[Any]) -> list[Any]:
        return [rows for at in range(0, len(asked), 10) for rows in await asyncio.gather(*asked[at : at + 10])]

    run(main())


def test_a_failure_is_of_its_image_with_class_and_details() -> None:
    def before(images: list[int]) -> None:
        if 13 in images:
            raise RuntimeError("poison")

    async def main() -> None:
        async with connected(FakeEngine(8, before=before), slots=4) as pair:
            bad, good = await asyncio.gather(pair.ask(1, 13), pair.ask(2, 3), return_exceptions=True)
            assert isinstance(bad, InferenceFailed) and bad.details == {"image": 1}
            assert [row[0, 0] for row in good] == [2, 3]
            await all_slots_are_back(pair, 4)

    run(main())


def test_an_image_that_fails_can_be_skipped() -> None:
    """The engine process tells of a failed image as of a failed request, and goes on with the others."""

    async def main() -> None:
        async with connected(FakeEngine(8, not_a_number=13), slots=4) as pair:
            skipped: dict[int, ServiceError] = {}
            pending = PendingResults(4, skipped)
            request = pair.client.admit("embed", 4, 1e9, pending)
            try:
                for index, number in enumerate((5, 13, 13, 6)):
                    pair.client.put(request, index, image(number), ALL_FOUR)
                results = await pending.wait()
            finally:
                pair.client.release(request)
                pending.close()
            assert [row[0, 0] for row in results] == [5, 6]
            assert sorted(skipped) == [1, 2] and all(isinstance(error, InferenceFailed) for error in skipped.values())
            await all_slots_are_back(pair, 4)

    run(main())


def test_who_leaves_frees_the_queue_at_once_and_slots_when_the_batch_is_done() -> None:
    gate = Gate()

    async def main() -> None:
        async with connected(FakeEngine(2, before=gate), slots=4, queue_images=6) as pair:
            with pair.admit(1, 2, 3, 4, 5, 6):
                await gate.wait_until_reached()
                await pair.until(lambda: pair.budget.used == 4 * IMAGE)  # two are in a batch
            await pair.until(lambda: pair.budget.used == 0 and pair.scheduler.waiting == 0)
            assert sample(pair.engine_metrics.render(), "mae_dropped_images_total", reason="abandoned") == 4
            gate.opened.set()
            assert [row[0, 0] for row in await pair.ask(7, 8)] == [7, 8]
            await pair.until(lambda: len(pair.client._free) == 4)

    run(main())


def test_who_leaves_before_anything_was_sent_frees_the_queue() -> None:
    async def main() -> None:
        async with connected(FakeEngine(2)) as pair:
            with admit(pair.client, 3, deadline=1e9):
                assert pair.budget.used == 3 * IMAGE
            assert pair.budget.used == 0
            assert sample(pair.worker_metrics.render(), "mae_dropped_images_total", reason="abandoned") == 3

    run(main())


def test_past_its_deadline_nothing_enters_a_batch() -> None:
    gate = Gate()
    engine = FakeEngine(1, before=gate)

    async def main() -> None:
        async with connected(engine, slots=4) as pair:
            running = asyncio.ensure_future(pair.ask(1))
            await gate.wait_until_reached()
            with pair.admit(2, 3, deadline=time.monotonic() + 0.02):
                await asyncio.sleep(0.04)
                gate.opened.set()
                await running
                await pair.until(lambda: pair.scheduler.waiting == 0 and pair.budget.used == 0)
            assert [images for _, _, images in engine.batches] == [[1]]
            assert sample(pair.engine_metrics.render(), "mae_dropped_images_total", reason="deadline") == 2
            await all_slots_are_back(pair, 4)

    run(main())


def test_the_queue_has_a_bound_before_anything_is_sent() -> None:
    async def main() -> None:
        async with connected(FakeEngine(2), queue_images=4) as pair:
            with admit(pair.client, 3, deadline=1e9):
                with pytest.raises(QueueFull) as full:
                    pair.client.admit("embed", 2, 1e9, PendingResults(2))
                assert full.value.details == {"limit": 4} and "3 images are waiting" in full.value.message
                with pytest.raises(TooManyImages):
                    pair.client.admit("embed", 5, 1e9, PendingResults(5))
            assert [row[0, 0] for row in await pair.ask(1, 2, 3, 4)] == [1, 2, 3, 4]

    run(main())


def test_a_lost_engine_fails_what_waits_and_what_comes() -> None:
    def before(images: list[int]) -> None:
        raise FatalEngineError("gone")

    async def main() -> None:
        async with connected(FakeEngine(1, before=before)) as pair:
            for numbers in ((1, 2), (3,)):
                with pytest.raises(EngineLost, match="gone"):
                    await pair.ask(*numbers)

    run(main())


def test_of_a_dead_worker_nothing_enters_a_batch() -> None:
    gate = Gate()
    engine = FakeEngine(2, before=gate)

    async def main() -> None:
        async with connected(engine, slots=8) as pair:
            with pair.admit(1, 2, 3, 4, 5):
                await gate.wait_until_reached()
                await pair.until(lambda: pair.scheduler.waiting == 3)
                pair.connection.end_all()
                assert pair.scheduler.waiting == 0 and pair.budget.used == 0
                gate.opened.set()
                await asyncio.sleep(0.05)
            assert [images for _, _, images in engine.batches] == [[1, 2]]

    run(main())


def test_the_memory_of_a_dead_worker_goes_back_without_the_collector() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("/memfd:slots")

    async def main() -> None:
        async with connected(FakeEngine(2)) as pair:
            assert await pair.ask(1, 2, 3)
            before = mappings()
            pair.connection.end_all()
            await pair.until(lambda: mappings() == before - 1)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_images_of_one_request_have_one_number_of_patches() -> None:
    async def main() -> None:
        async with connected(FakeEngine(2)) as pair:
            with admit(pair.client, 2, deadline=1e9) as call:
                call.put(0, np.zeros((4, 768), np.uint8), np.arange(4, dtype=np.int32))
                with pytest.raises(ValueError, match="same number"):
                    call.put(1, np.zeros((2, 768), np.uint8), np.arange(2, dtype=np.int32))

    run(main())


def test_an_image_of_which_less_is_encoded_counts_as_less_in_all_processes() -> None:
    gate = Gate()

    async def main() -> None:
        async with connected(FakeEngine(2, before=gate), queue_images=4) as pair:
            with pair.admit(1) as first, admit(pair.client, 3, deadline=1e9):
                await gate.wait_until_reached()
                await pair.until(lambda: pair.budget.used == 3 * IMAGE)  # one is in a batch
                with admit(pair.client, 4, deadline=1e9, shares=(1.0, 0.5, 0.25)) as degraded:
                    assert degraded.request.share == 0.25 and pair.budget.used == 4 * IMAGE
                    degraded.put_all([2, 3, 4, 5], visible=1)
                    gate.opened.set()
                    assert [row[0, 0] for row in await degraded.results()] == [2, 3, 4, 5]
                    await pair.until(lambda: pair.budget.used == 3 * IMAGE)
                await first.results()
            with admit(pair.client, 2, deadline=1e9, shares=(0.3,)) as left:  # a share that is no power of two
                left.put_all([6])
            await pair.until(lambda: pair.budget.used == 0)

    run(main())


class RecordingTracer:
    """Records what the engine process's scheduler says of batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def record_batch(self, operation: str, lane: int, images: Any, taken_at: float) -> None:
        self.batches.append([image.traceparent for image in images])


def test_the_trace_of_a_request_crosses_with_its_images() -> None:
    tracer, traceparent = RecordingTracer(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def main() -> None:
        async with connected(FakeEngine(1), tracer=tracer) as pair:
            for name in (traceparent, ""):
                pending = PendingResults(2)
                request = pair.client.admit("embed", 2, 1e9, pending, traceparent=name)
                for index in range(2):
                    pair.client.put(request, index, image(index), ALL_FOUR)
                await pending.wait()
                pair.client.release(request)
            await pair.until(lambda: len(tracer.batches) == 4)

    run(main())
    assert tracer.batches == [[traceparent], [traceparent], [""], [""]]
