"""Images -> patches -> batches -> results: what a route and a command have in common."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Head, Heads
from model.engines.base import EngineInfo
from model.masking import all_indices
from service.errors import InvalidParameter, NoDecoder, NoHead, ServiceError
from service.inference.executor import Operation
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.queue import QueuedRequest
from service.metrics import Metrics
from service.parameters import Pool

T = TypeVar("T")
ChooseVisible = Callable[[DecodedImage], Indices]
"""Which patches of a decoded image stay visible, int32 [K]; runs in the decode pool."""


@dataclass
class Timings:
    """Seconds of one request, by stage; of several images, the slowest one's."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    render: float = 0.0


@dataclass(frozen=True)
class Reconstruction:
    """One image, seen through its visible patches."""

    patches: Bytes
    """The image itself, uint8 [N, P]."""
    pixels: Bytes
    """What the decoder painted, uint8 [N, P]."""
    error: Floats
    """Squared error of each patch in the decoder's pixels, float32 [N]."""
    visible_indices: Indices
    """The visible patches, int32 [K]."""

    @property
    def loss(self) -> float:
        """Mean squared error over the removed patches."""
        removed = np.ones(len(self.error), dtype=bool)
        removed[self.visible_indices] = False
        return float(self.error[removed].mean())

    @property
    def removed_share(self) -> float:
        """Share of the patches that was removed."""
        return 1 - len(self.visible_indices) / len(self.error)


class Queue(Protocol):
    """The way to the engine: a `BatchScheduler`, or what stands for one in another process."""

    def admit(self, operation: Operation, count: int, deadline: float) -> QueuedRequest:
        """As `BatchScheduler.admit`."""

    def fail_all(self, error: ServiceError) -> None:
        """As `BatchScheduler.fail_all`."""

    def stop(self) -> None:
        """As `BatchScheduler.stop`."""


class Pipeline:
    """Decodes in the pool, queues in the batcher, waits for the rows."""

    def __init__(self, info: EngineInfo, heads: Heads, decoder: ImageDecoder, batcher: Queue, metrics: Metrics) -> None:
        """For one engine."""
        self.info = info
        self.heads = heads
        self.decoder = decoder
        self.batcher = batcher
        self._metrics = metrics

    @property
    def head(self) -> Head:
        """The model's classification head.

        Raises:
            NoHead: it has none.
        """
        if self.heads.head is None:
            raise NoHead(f"{self.info.model} has no classification head: mae finetune trains one")
        return self.heads.head

    async def embed(
        self, images: list[bytes], pool: Pool, visible_indices: Indices, timings: Timings, deadline: float = math.inf
    ) -> list[Floats]:
        """Vectors of `images`, float32 [D] each, or [K, D] for `tokens`.

        Args:
            images: encoded images.
            pool: `mean` of the patch tokens, `cls`, or all `tokens` in the order of `visible_indices`.
            visible_indices: the patches that are encoded, int32 [K], in all images the same.
            timings: filled with the time it took.
            deadline: of time.monotonic(); later than that nothing enters a batch.

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        operation: Operation = "tokens" if pool == "tokens" else "embed"
        with self.batcher.admit(operation, len(images), deadline) as ticket:

            def prepare(data: bytes, index: int) -> tuple[Bytes, Indices]:
                patches = self.decoder.decode(data, index).patches
                return (patches if len(visible_indices) == len(patches) else patches[visible_indices]), visible_indices

            async def feed(numbers: Iterator[int]) -> None:
                for index in numbers:
                    ticket.put(index, *await self._decoded(prepare, images[index], index, timings))

            await self._feed(feed, len(images))
            rows = await self._rows(ticket, timings)
        return rows if pool == "tokens" else [row[POOL_INDEX[pool]] for row in rows]

    async def classify(self, images: list[bytes], timings: Timings, deadline: float = math.inf) -> list[Floats]:
        """Probabilities of the head's classes for `images`, float32 [C] each, in the order of the head's facts.

        The whole image is embedded, in batches with whoever else embeds; the head runs here, image by image, so that
        the bits are the same whatever else a request brings.

        Args:
            images: encoded images.
            timings: filled with the time it took.
            deadline: of time.monotonic(); later than that nothing enters a batch.

        Raises:
            NoHead: the model has no classification head.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        head, whole = self.head, all_indices(self.info.config.num_patches)
        vectors = await self.embed(images, head.config.pool, whole, timings, deadline)
        return await self.render(lambda: [head.probabilities(vector[None])[0] for vector in vectors], timings)

    async def reconstruct(
        self, images: list[bytes], place: ChooseVisible, timings: Timings, deadline: float = math.inf
    ) -> list[Reconstruction]:
        """What the decoder makes of the visible patches of `images`.

        Args:
            images: encoded images.
            place: says which patches of an image stay visible; the same number for all.
            timings: filled with the time it took.
            deadline: of time.monotonic(); later than that nothing enters a batch.

        Raises:
            NoDecoder: the model cannot reconstruct.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        if not self.info.config.has_decoder:
            raise NoDecoder(f"{self.info.model} has no decoder: its weights hold the encoder alone")
        seen: list[tuple[Bytes, Indices]] = [(np.empty(0, np.uint8), np.empty(0, np.int32))] * len(images)
        with self.batcher.admit("reconstruct", len(images), deadline) as ticket:

            def prepare(data: bytes, index: int) -> tuple[Bytes, Indices]:
                decoded = self.decoder.decode(data, index)
                return decoded.patches, place(decoded)

            async def feed(numbers: Iterator[int]) -> None:
                for index in numbers:
                    seen[index] = await self._decoded(prepare, images[index], index, timings)
                    ticket.put(index, *seen[index])

            await self._feed(feed, len(images))
            rows = await self._rows(ticket, timings)
        return [
            Reconstruction(patches, pixels, error, visible_indices)
            for (patches, visible_indices), (pixels, error) in zip(seen, rows, strict=True)
        ]

    async def render(self, work: Callable[[], T], timings: Timings) -> T:
        """Runs `work`, which writes a picture or a large answer, in the decode pool."""
        start = time.monotonic()
        result = await self.decoder.run(work)
        timings.render = time.monotonic() - start
        self._metrics.stage_duration.labels("render").observe(timings.render)
        return result

    async def _decoded(
        self, prepare: Callable[[bytes, int], tuple[Bytes, Indices]], data: bytes, index: int, timings: Timings
    ) -> tuple[Bytes, Indices]:
        start = time.monotonic()
        result = await self.decoder.run(prepare, data, index)
        seconds = time.monotonic() - start
        timings.decode = max(timings.decode, seconds)
        self._metrics.stage_duration.labels("decode").observe(seconds)
        return result

    async def _feed(self, feed: Callable[[Iterator[int]], Coroutine[Any, Any, None]], count: int) -> None:
        """Decodes a request's images, no more at a time than there are threads: others' come in between."""
        numbers = iter(range(count))
        if count == 1:
            await feed(numbers)
            return
        tasks = [asyncio.ensure_future(feed(numbers)) for _ in range(min(count, self.decoder.threads))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _rows(self, ticket: QueuedRequest, timings: Timings) -> list[Any]:
        rows = await ticket.rows()
        timings.queue, timings.infer = ticket.timing.queue, ticket.timing.infer
        return rows


def require_pool(info: EngineInfo, pool: Pool) -> None:
    """Raises InvalidParameter if the model has no vectors of this kind."""
    if pool == "cls" and not info.config.has_cls:
        raise InvalidParameter(
            f"pool: {info.model} is convolutional and has no cls token: take mean or tokens", parameter="pool"
        )
