"""From encoded images to results: decoding in a pool of threads, then the scheduler; for routes and commands alike."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Head, Heads
from model.engines.base import EngineInfo
from model.masking import all_indices
from service.errors import NoDecoder, NoHead, ServiceError
from service.inference.decode_memory import MemoryShortage
from service.inference.image_decoder import ImageDecoder
from service.inference.pending_results import PendingResults
from service.inference.queue import DecoderOutput, Operation, QueuedRequest, Result
from service.inference.reconstruction import ChoosePasses, ChooseVisible, Reconstruction
from service.inference.scheduler import Scheduler
from service.metrics import Metrics
from service.parameters import Pool

T = TypeVar("T")
Pass = tuple[Bytes, Indices]
"""One pass of an image: patches uint8 [K, P] or [N, P], visible indices int32 [K]."""
PrepareImage = Callable[[bytes, int, int], Sequence[Pass]]
"""Decodes image `index` for the engine, in the pool, with as many bytes of memory as are reserved for it.

Returns its passes: as many as every image of the request has."""


@dataclass
class Timings:
    """Seconds of one request by stage; of several images, the seconds of the slowest."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    render: float = 0.0


class Pipeline:
    """Decodes images in a pool of threads, queues them with the scheduler, and waits for the results."""

    def __init__(
        self,
        info: EngineInfo,
        heads: Heads,
        image_decoder: ImageDecoder,
        scheduler: Scheduler,
        metrics: Metrics,
        threads: int,
    ) -> None:
        """For one engine, with a pool of `threads` threads that decode images and write answers."""
        self.info = info
        self.heads = heads
        self.image_decoder = image_decoder
        self.scheduler = scheduler
        self._metrics = metrics
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    @property
    def head(self) -> Head:
        """The model's classification head.

        Raises:
            NoHead: it has none.
        """
        if self.heads.head is None:
            raise NoHead(f"{self.info.model} has no classification head: mae finetune trains one")
        return self.heads.head

    def require_decoder(self) -> None:
        """Checks that the model can reconstruct.

        Raises:
            NoDecoder: it has no decoder.
        """
        if not self.info.config.has_decoder:
            raise NoDecoder(f"{self.info.model} has no decoder: its weights hold the encoder alone")

    async def embed(
        self,
        images: list[bytes],
        pool: Pool,
        visible_indices: Indices,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> list[Floats]:
        """Embeds images.

        Args:
            images: encoded images.
            pool: `mean` of the patch tokens, `cls`, or all `tokens` in the order of `visible_indices`.
            visible_indices: the patches that are encoded, int32 [K], the same in all images.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: filled with the errors of images that are left out, by index; it may hold some already. If all
                images are left out, the error of the first is raised. None: any error of an image is raised.

        Returns:
            A vector per image that is not left out, float32 [D]; float32 [K, D] for `tokens`.

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """

        def prepare(data: bytes, index: int, reserved: int) -> Sequence[Pass]:
            patches = self.image_decoder.decode(data, index, reserved).patches
            whole = len(visible_indices) == len(patches)
            return [(patches if whole else patches[visible_indices], visible_indices)]

        operation: Operation = "tokens" if pool == "tokens" else "embed"
        results = await self._infer(operation, images, prepare, timings, deadline, skipped)
        vectors = [result for result in results if not isinstance(result, DecoderOutput)]
        return vectors if pool == "tokens" else [vector[POOL_INDEX[pool]] for vector in vectors]

    async def classify(
        self,
        images: list[bytes],
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> list[Floats]:
        """Classifies images by the model's head.

        Whole images are embedded, in batches with all other embeddings. The head runs here, image by image, so that an
        image's probabilities have the same bits with any other images in the request.

        Args:
            images: encoded images.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`.

        Returns:
            The classes' probabilities per image that is not left out, float32 [C], in the order of the head's classes.

        Raises:
            NoHead: the model has no classification head.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        head = self.head
        visible_indices = all_indices(self.info.config.num_patches)
        vectors = await self.embed(images, head.config.pool, visible_indices, timings, deadline, skipped)
        return await self.render(lambda: [head.probabilities(vector[None])[0] for vector in vectors], timings)

    async def reconstruct(
        self,
        images: list[bytes],
        choose_visible: ChooseVisible,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> list[Reconstruction]:
        """Reconstructs images from their visible patches.

        Args:
            images: encoded images.
            choose_visible: chooses the visible patches of an image; the same number for all images.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`; the images that are left out have no reconstruction.

        Raises:
            NoDecoder: the model cannot reconstruct.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        by_image = await self.reconstruct_passes(
            images, lambda image: [choose_visible(image)], 1, timings, deadline, skipped
        )
        return [reconstruction for [reconstruction] in by_image]

    async def reconstruct_passes(
        self,
        images: list[bytes],
        choose_passes: ChoosePasses,
        passes: int,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> list[list[Reconstruction]]:
        """Reconstructs each image several times, from other visible patches in each pass.

        An image is decoded once, and each of its passes counts as an image in the queue.

        Args:
            images: encoded images.
            choose_passes: chooses the visible patches of each pass of an image; the same number in all passes.
            passes: number of passes of each image.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`; the images that are left out have no reconstruction.

        Returns:
            The passes of each image that is not left out.

        Raises:
            NoDecoder: the model cannot reconstruct.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        self.require_decoder()
        prepared: dict[int, Sequence[Pass]] = {}

        def prepare(data: bytes, index: int, reserved: int) -> Sequence[Pass]:
            decoded = self.image_decoder.decode(data, index, reserved)
            prepared[index] = [(decoded.patches, visible_indices) for visible_indices in choose_passes(decoded)]
            return prepared[index]

        results = iter(await self._infer("reconstruct", images, prepare, timings, deadline, skipped, passes))
        by_image = []
        for index in range(len(images)):
            if index in (skipped or ()):
                continue
            reconstructions = []
            for patches, visible_indices in prepared[index]:
                result = next(results)
                assert isinstance(result, DecoderOutput)
                reconstructions.append(Reconstruction(patches, result.pixels, result.error, visible_indices))
            by_image.append(reconstructions)
        return by_image

    async def render(self, write: Callable[[], T], timings: Timings) -> T:
        """Runs `write`, which computes or writes the answer, in the pool, and measures its time."""
        start = time.monotonic()
        result = await self.run_in_pool(write)
        timings.render = time.monotonic() - start
        self._metrics.stage_duration.labels("render").observe(timings.render)
        return result

    async def run_in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs `work(*arguments)` in the pool of threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Stops the scheduler and the pool; a batch that runs longer than LAST_BATCH_S is left to itself."""
        self.scheduler.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _infer(
        self,
        operation: Operation,
        images: list[bytes],
        prepare: PrepareImage,
        timings: Timings,
        deadline: float,
        skipped: dict[int, ServiceError] | None,
        passes: int = 1,
    ) -> list[Result]:
        pending = PendingResults(len(images), skipped, passes)
        request = self.scheduler.admit(operation, len(images) * passes, deadline, pending, passes)
        try:
            await self._queue_images(request, pending, images, prepare, timings)
            results = await pending.wait()
        finally:
            self.scheduler.release(request)
            pending.close()
        timings.queue, timings.infer = pending.queue_s, pending.infer_s
        return results

    async def _queue_images(
        self,
        request: QueuedRequest,
        pending: PendingResults,
        images: list[bytes],
        prepare: PrepareImage,
        timings: Timings,
    ) -> None:
        """Decodes and queues the images of a request, at most as many at once as the pool has threads.

        So the pool also decodes images of other requests in between.
        """
        indexes = iter([index for index in range(len(images)) if not pending.is_skipped(index)])
        if len(images) == 1:
            await self._queue_next(indexes, request, pending, images, prepare, timings)
            return
        # The tasks share one iterator: each takes the next image when it has queued the one before.
        tasks = [
            asyncio.ensure_future(self._queue_next(indexes, request, pending, images, prepare, timings))
            for _ in range(min(len(images), self._threads))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _queue_next(
        self,
        indexes: Iterator[int],
        request: QueuedRequest,
        pending: PendingResults,
        images: list[bytes],
        prepare: PrepareImage,
        timings: Timings,
    ) -> None:
        for index in indexes:
            start = time.monotonic()
            try:
                prepared = await self._prepare(prepare, images[index], index)
            except ServiceError as error:
                if not pending.can_skip(error):
                    raise
                pending.on_failed(error)
                continue
            seconds = time.monotonic() - start
            timings.decode = max(timings.decode, seconds)
            self._metrics.stage_duration.labels("decode").observe(seconds)
            for number, (patches, visible_indices) in enumerate(prepared, index * request.passes):
                self.scheduler.put(request, number, patches, visible_indices)

    async def _prepare(self, prepare: PrepareImage, data: bytes, index: int) -> Sequence[Pass]:
        """Runs `prepare` in the pool, and again with the memory that it lacks once this is free.

        So an image that waits for memory takes no thread from the others.
        """
        try:
            return await self.run_in_pool(prepare, data, index, 0)
        except MemoryShortage as shortage:
            needed = shortage.needed
        reservation = await self.image_decoder.memory.reserve(needed)
        future = self._pool.submit(prepare, data, index, needed)
        # Released when the thread has ended, or when the future is cancelled before a thread took it.
        future.add_done_callback(lambda _: reservation.release())
        return await asyncio.wrap_future(future)
