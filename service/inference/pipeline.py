"""The way of a request's images to results: cache, admission, decoding, queue; for routes and commands alike.

    images -> infer: look up the cache -> admit: reserve room in the queue -> decode in the pool -> scheduler -> results

The operations (`service.inference.embedding`, `classification`, `reconstruction`, `explanation` and `anomaly`) tell by
an `Inference` what the engine computes, and make of its results what they answer. `service.inference.search` looks the
vectors of an embedding up in the index.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from model.arrays import Bytes
from model.checkpoints.heads import Head, Heads
from model.checkpoints.memory_bank import use_one_blas_thread
from model.engines.base import EngineInfo
from service.errors import NoDecoder, NoHead, NoIndex
from service.inference.admission import AdmittedRequest
from service.inference.cache import CachedResults, ResultCache
from service.inference.decode_pool import DecodePool
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.images import ImageRequest, WholeImage
from service.inference.limits import require_possible
from service.inference.passes import ImageResults, Inference
from service.inference.pending_results import PendingResults
from service.inference.scheduler import Scheduler
from service.inference.searcher import IndexInfo, Searcher
from service.inference.timings import Timings
from service.metrics import Metrics

T = TypeVar("T")


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
        drift_sample: float = 0.0,
        cache: ResultCache | None = None,
        index: Searcher | None = None,
    ) -> None:
        """For one engine, with a pool of `threads` threads that decode images and write answers.

        The share `drift_sample` of the images also goes to `Scheduler.sample`, once their request has its results.
        Results are kept in `cache`, if there is one, for requests that have a `cache_key`. `index` is the one that
        requests may search, if there is one.
        """
        self.info = info
        self.heads = heads
        self.image_decoder = image_decoder
        self.scheduler = scheduler
        self._metrics = metrics
        self._drift_sample = drift_sample
        self._cache = cache
        self._index = index
        if heads.memory_bank is not None:
            use_one_blas_thread()
        self._pool = DecodePool(image_decoder.memory, scheduler, threads, metrics)

    @property
    def head(self) -> Head:
        """The model's classification head.

        Raises:
            NoHead: it has none.
        """
        if self.heads.head is None:
            raise NoHead.of(self.info.model)
        return self.heads.head

    @property
    def index(self) -> Searcher:
        """The index that requests may search.

        Raises:
            NoIndex: there is none.
        """
        if self._index is None:
            raise NoIndex("no index is served: mae index makes one, and the setting INDEX names its folder")
        return self._index

    async def describe_index(self) -> IndexInfo | None:
        """The index as it is now; None if there is none.

        Raises:
            SearchFailed: it cannot be read.
        """
        return None if self._index is None else await self._index.describe()

    def require_decoder(self) -> None:
        """Checks that the model can reconstruct.

        Raises:
            NoDecoder: it has no decoder.
        """
        if not self.info.config.has_decoder:
            raise NoDecoder(f"{self.info.model} has no decoder: its weights hold the encoder alone")

    async def infer(self, request: ImageRequest, inference: Inference) -> list[ImageResults]:
        """Computes results of images, or takes them from the cache.

        Args:
            request: the images.
            inference: what is computed; under load less than that, if it allows it.

        Returns:
            The results of each image that is not left out.

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        cached = await self._look_up(request, inference)
        known = {index: inference.unpack(arrays) for index, arrays in cached.known.items()}
        if known and len(known) == len(request.answered):
            return [known[index] for index in sorted(known)]
        if len(inference.shares) > 1:
            known = {}  # all images of an answer have the same patches, which the load decides
        with self.admit(request, inference, known) as admitted:
            await admitted.queue_images()
            results = await admitted.wait()
        if (done := admitted.inference) is not inference:
            self._metrics.degraded_images.inc(len(results))
            cached = await self._look_up(request, done, stores_only=True)  # they are stored as what they are
        if cached.keys:
            for index, result in zip(request.answered, results, strict=True):
                cached.store(index, done.pack(result))
        return results

    @contextmanager
    def admit(
        self, request: ImageRequest, inference: Inference, known: Mapping[int, ImageResults] | None = None
    ) -> Iterator[AdmittedRequest]:
        """Reserves room in the queue for the images that are not `known`; what is left of it is free afterwards.

        Raises:
            TooManyImages, QueueFull, EngineLost: as `Scheduler.admit`.
        """
        known, count, passes = known or {}, len(request.images), inference.passes
        outputs = {index: results.outputs for index, results in known.items()}
        pending = PendingResults(count, request.skipped, passes, outputs)
        queued = self.scheduler.admit(
            inference.operation,
            (count - len(known)) * passes,
            request.deadline,
            pending,
            passes,
            inference.shares,
            request.timings.traceparent,
        )
        sampled: list[Bytes] = []

        def decode(image: WholeImage, index: int, reserved: int) -> DecodedImage:
            decoded = self._decode(image, index, reserved)
            if random.random() < self._drift_sample:
                sampled.append(decoded.patches)
            return decoded

        try:
            yield AdmittedRequest(request, inference, queued, pending, known, self._pool, decode)
        finally:
            self.scheduler.release(queued)
            pending.close()
        # Not before the results are there, so that measuring their drift is not in the way.
        for patches in sampled:
            self.scheduler.sample(patches)

    async def render(self, write: Callable[[], T], timings: Timings) -> T:
        """Runs `write`, which computes or writes the answer, in the pool, and measures its time."""
        start = time.monotonic()
        with timings.record_span("render"):
            result = await self.run_in_pool(write)
        seconds = time.monotonic() - start
        timings.render += seconds
        self._metrics.stage_duration.labels("render").observe(seconds)
        return result

    async def run_in_pool(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs `work(*arguments)` in the pool of threads."""
        return await self._pool.run(work, *arguments)

    def close(self) -> None:
        """Stops the scheduler and the pool; a batch that runs longer than LAST_BATCH_S is left to itself."""
        self.scheduler.stop()
        self._pool.close()

    async def _look_up(
        self, request: ImageRequest, inference: Inference, *, stores_only: bool = False
    ) -> CachedResults:
        """Looks the images of a request up in the cache; or with `stores_only` only makes their keys.

        Raises:
            TooManyImages: the queue could never hold the request, which is refused whatever is cached.
        """
        if self._cache is None or request.cache_key is None or (context := inference.cache_context) is None:
            return CachedResults()
        require_possible(self._cache.queue, len(request.images) * inference.passes, inference.passes)
        encoded = {index: image for index in request.answered if isinstance(image := request.images[index], bytes)}
        find = self._cache.prepare if stores_only else self._cache.look_up
        return await find((request.cache_key, *context), encoded, self.run_in_pool)

    def _decode(self, image: WholeImage, index: int, reserved: int) -> DecodedImage:
        """Decodes an image if it was not before."""
        if isinstance(image, bytes):
            return self.image_decoder.decode(image, index, reserved, may_be_long=reserved > 0)
        return DecodedImage.of_patches(image, self.info.config, index)
