"""Pools of threads that decode the images of requests, and queue them with the scheduler.

Images that take long have threads of their own, so those who send them wait for each other and hold nobody else up.
Threads do not end before their image is decoded, but what one image may cost is bounded before it is begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TypeVar

from service.errors import ServiceError, TooManyPixels
from service.inference.decode_memory import DecodeMemory, LongDecode, MemoryShortage, Reservation
from service.inference.images import Image
from service.inference.passes import Pass
from service.inference.pending_results import PendingResults
from service.inference.queue import QueuedRequest
from service.inference.scheduler import Scheduler
from service.inference.timings import Timings
from service.metrics import Metrics

T = TypeVar("T")
MAX_WORK = 1e9
"""What the images of a request that take long may cost together: 20 of the largest, or 20 to 50 CPU-seconds."""
PrepareImage = Callable[[Image, int, int], Sequence[Pass]]
"""Decodes image `index` for the engine, in the pool, with as many bytes of memory as are reserved for it.

Returns its passes: as many as every image of the request has. If it lacks memory or takes long, it raises what
`ImageDecoder.decode` raises and is called again; once for the image and once for its mask picture."""


class DecodePool:
    """Decodes images in threads, and writes answers in them."""

    def __init__(
        self, memory: DecodeMemory, scheduler: Scheduler, threads: int, metrics: Metrics, max_work: float = MAX_WORK
    ) -> None:
        """Decodes within `memory`, for `scheduler`; `metrics` get the time of each image.

        The images of a request that take long may cost as much as `max_work` pixels of a PNG together.
        """
        self._memory = memory
        self._max_work = max_work
        self._scheduler = scheduler
        self._threads = threads
        self._decode_duration = metrics.stage_duration.labels("decode")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._long_pool = ThreadPoolExecutor(threads, thread_name_prefix="decode-long")
        self._free_long_threads = asyncio.Semaphore(threads)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs `work(*arguments)` in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Ends the threads, without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._long_pool.shutdown(wait=False, cancel_futures=True)

    async def queue_images(
        self,
        request: QueuedRequest,
        pending: PendingResults,
        images: Sequence[Image],
        prepare: PrepareImage,
        timings: Timings,
    ) -> None:
        """Decodes and queues the images of a request, at most as many at once as the pool has threads.

        So the pool also decodes images of other requests in between.

        Args:
            request: as the scheduler admitted it.
            pending: its results, which tell the images that are left out, and those whose results are known.
            images: encoded images, or what was cut into patches already.
            prepare: decodes an image.
            timings: of the request; filled with the seconds of the slowest image.

        Raises:
            TooManyPixels: the images that take long are too many together.
            ServiceError: an image is refused.
        """
        work = 0.0

        def count_work(of_image: float) -> None:
            nonlocal work
            work += of_image
            if work > self._max_work:
                raise TooManyPixels(
                    f"the images of the request have too many pixels to decode together: those of more than 8"
                    f" megapixels may have {self._max_work / 1e6:.0f} megapixels",
                    limit=self._max_work,
                )

        indexes = iter(
            [index for index in range(len(images)) if not (pending.is_skipped(index) or pending.is_known(index))]
        )

        async def queue_next() -> None:
            for index in indexes:
                start = monotonic()
                try:
                    with timings.record_span("decode", image=index):
                        passes = await self._prepare(prepare, images[index], index, count_work)
                except ServiceError as error:
                    if not pending.can_skip(error):
                        raise
                    pending.on_failed(error)
                    continue
                seconds = monotonic() - start
                timings.decode = max(timings.decode, seconds)
                self._decode_duration.observe(seconds)
                self.queue_passes(request, index, passes)

        if len(images) == 1:
            await queue_next()
            return
        # The tasks share one iterator: each takes the next image when it has queued the one before.
        tasks = [asyncio.ensure_future(queue_next()) for _ in range(min(len(images), self._threads))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def queue_passes(self, request: QueuedRequest, index: int, passes: Sequence[Pass]) -> None:
        """Queues the passes of image `index` of a request."""
        for number, (patches, visible_indices) in enumerate(passes, index * request.passes):
            self._scheduler.put(request, number, patches, visible_indices)

    async def _prepare(
        self, prepare: PrepareImage, image: Image, index: int, count_work: Callable[[float], None]
    ) -> Sequence[Pass]:
        """Runs `prepare` in the pool, and again with the memory or the thread that it lacks once this is free.

        So an image that waits for memory takes no thread from the others. What needs no decoder needs no thread.
        """
        if not isinstance(image, bytes):
            return prepare(image, index, 0)
        run = partial(self.run, prepare, image, index, 0)
        while True:
            try:
                return await run()
            except MemoryShortage as shortage:
                run = partial(self._prepare_with_memory, prepare, image, index, shortage.needed)
            except LongDecode as long:
                count_work(long.work)
                run = partial(self._prepare_long, prepare, image, index, long.needed)

    async def _prepare_with_memory(
        self, prepare: PrepareImage, image: Image, index: int, needed: int
    ) -> Sequence[Pass]:
        """Waits for memory."""
        reservation = await self._memory.reserve(needed)
        return await asyncio.wrap_future(self._submit(self._pool, reservation, prepare, image, index))

    async def _prepare_long(self, prepare: PrepareImage, image: Image, index: int, needed: int) -> Sequence[Pass]:
        """Waits for a thread for images that take long, then for memory: none is held by an image without a thread."""
        loop = asyncio.get_running_loop()
        await self._free_long_threads.acquire()
        try:
            reservation = await self._memory.reserve(needed)
        except BaseException:
            self._free_long_threads.release()
            raise
        future = self._submit(self._long_pool, reservation, prepare, image, index)

        def free_thread(_: Future[Sequence[Pass]]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(self._free_long_threads.release)

        future.add_done_callback(free_thread)
        return await asyncio.wrap_future(future)

    def _submit(
        self, pool: ThreadPoolExecutor, reservation: Reservation, prepare: PrepareImage, image: Image, index: int
    ) -> Future[Sequence[Pass]]:
        """Runs `prepare` with reserved memory."""
        future = pool.submit(prepare, image, index, reservation.size)
        # Released when the thread has ended, or when the future is cancelled before a thread took it.
        future.add_done_callback(lambda _: reservation.release())
        return future
