"""Images that take long wait for each other, and hold up no other image."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from PIL import Image as Pillow

from model.config import PRESETS, Preprocessing
from service.errors import TooManyPixels
from service.inference.batch_scheduler import BatchScheduler
from service.inference.decode_memory import DecodeMemory, LongDecode
from service.inference.decode_pool import DecodePool
from service.inference.image_decoder import ImageDecoder
from service.inference.images import Image
from service.inference.limits import LocalBudget
from service.inference.passes import Pass
from service.inference.pending_results import PendingResults
from service.inference.timings import Timings
from service.metrics import Metrics
from tests.service.inference.test_decode_memory import flat_png
from tests.support.engines import FakeEngine
from tests.support.image_files import add_scans, jpeg_file
from tests.support.images import encoded
from tests.support.queueing import ALL_FOUR, image

TINY = PRESETS["mae_tiny"]
LONG, SHORT = b"long", b"short"
NEEDED = 60


class Decodes:
    """A pool of one thread, whose long images need 60 bytes of 100, and end when `gate` is set."""

    def __init__(self, work: float = 10.0, max_work: float = 1000.0) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.memory = DecodeMemory(LocalBudget(100))
        metrics = Metrics()
        self._work = work
        self._scheduler = BatchScheduler(FakeEngine(), metrics, LocalBudget())
        self.pool = DecodePool(self.memory, self._scheduler, 1, metrics, max_work)

    async def send(self, *images: bytes) -> None:
        pending = PendingResults(len(images))
        request = self._scheduler.admit("embed", len(images), 1e9, pending)
        try:
            await self.pool.queue_images(request, pending, images, self._prepare, Timings())
        finally:
            self._scheduler.release(request)
            pending.close()

    def _prepare(self, data: Image, index: int, reserved: int) -> Sequence[Pass]:
        if data is LONG:
            if not reserved:
                raise LongDecode(NEEDED, self._work)
            self.begun.release()
            assert self.gate.wait(30)
        return [(image(5), ALL_FOUR)]


async def begin(decodes: Decodes) -> "asyncio.Task[None]":
    """A request with a long image, once a thread has begun it."""
    task = asyncio.create_task(decodes.send(LONG))
    assert await asyncio.to_thread(decodes.begun.acquire, timeout=30)
    return task


def test_ordinary_images_pass_those_that_take_long() -> None:
    async def main() -> None:
        decodes = Decodes()
        first = await begin(decodes)
        second = asyncio.create_task(decodes.send(LONG, SHORT))
        for _ in range(3):
            await asyncio.wait_for(decodes.send(SHORT, SHORT), 60)
        assert not first.done() and not second.done()
        assert decodes.memory.used == NEEDED  # the second holds none while it waits for the thread
        decodes.gate.set()
        await asyncio.gather(first, second)
        assert decodes.memory.used == 0
        decodes.pool.close()

    asyncio.run(main())


def test_a_request_that_ends_while_its_image_is_decoded_gives_back_thread_and_memory_afterwards() -> None:
    async def main() -> None:
        decodes = Decodes()
        first = await begin(decodes)
        waiting = asyncio.create_task(decodes.send(LONG))
        await asyncio.sleep(0)
        for task in (first, waiting):
            task.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert decodes.memory.used == NEEDED
        third = asyncio.create_task(decodes.send(LONG))
        decodes.gate.set()
        await asyncio.wait_for(third, 60)
        assert decodes.memory.used == 0
        decodes.pool.close()

    asyncio.run(main())


def test_the_long_images_of_a_request_are_bounded_together() -> None:
    async def main() -> None:
        decodes = Decodes(work=400)
        decodes.gate.set()
        await decodes.send(LONG, LONG, SHORT)
        with pytest.raises(TooManyPixels, match="the images of the request"):
            await decodes.send(LONG, LONG, LONG)
        assert decodes.memory.used == 0
        decodes.pool.close()

    asyncio.run(main())


def test_what_takes_long_is_told_by_the_header() -> None:
    """0.25 s on one core of 2026 or more; photographs of every camera take less."""
    decoder = ImageDecoder(TINY, Preprocessing(), 64_000_000)
    photo = Pillow.new("RGB", (4000, 3000))
    for data in (jpeg_file(photo), jpeg_file(photo, progressive=True), encoded(photo.resize((3000, 2000)), "PNG")):
        decoder.decode(data, 0, may_be_long=False)
    for data in (flat_png(3000, 3000, 0, 1), add_scans(150, (1000, 1000))):
        with pytest.raises(LongDecode):
            decoder.decode(data, 0, may_be_long=False)
        decoder.decode(data, 0)
