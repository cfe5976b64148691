"""From encoded images to results: decoding in a pool of threads, then the scheduler; for routes and commands alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Head, Heads
from model.checkpoints.memory_bank import use_one_blas_thread
from model.engines.base import EngineInfo
from model.masking import all_indices
from service.errors import NoDecoder, NoHead, ServiceError
from service.inference.cache import CachedResults, ResultCache
from service.inference.decode_pool import DecodePool, Pass, PrepareImage
from service.inference.embedding import EmbeddingPlan
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.images import Image, VisiblePatches, WholeImage
from service.inference.limits import WHOLE, require_possible
from service.inference.pending_results import PendingResults
from service.inference.queue import DecoderOutput, Operation, QueuedRequest, Result
from service.inference.reconstruction import ChoosePasses, Reconstruction
from service.inference.scheduler import Scheduler
from service.metrics import Metrics
from service.parameters import Pool

if TYPE_CHECKING:
    from service.tracing.spans import RequestTrace

T = TypeVar("T")
_NO_SPAN = nullcontext()


@dataclass
class Timings:
    """Seconds of one request by stage; of several images, the seconds of the slowest."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    render: float = 0.0
    trace: RequestTrace | None = None
    """Records the stages as spans; None where requests are not traced."""

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, by its name."""
        return {"decode": self.decode, "queue": self.queue, "infer": self.infer, "render": self.render}

    def record_span(self, stage: str, **attributes: int) -> AbstractContextManager[None]:
        """A context whose time is recorded as a span, where requests are traced."""
        return _NO_SPAN if self.trace is None else self.trace.stage(stage, **attributes)

    @property
    def traceparent(self) -> str:
        """Names the request's span for spans of its batches; empty if the request is not sampled."""
        return "" if self.trace is None else self.trace.sampled_traceparent


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
    ) -> None:
        """For one engine, with a pool of `threads` threads that decode images and write answers.

        The share `drift_sample` of the images also goes to `Scheduler.sample`, once their request has its results.
        Results are kept in `cache`, if there is one, for requests that have a `cache_key`.
        """
        self.info = info
        self.heads = heads
        self.image_decoder = image_decoder
        self.scheduler = scheduler
        self._metrics = metrics
        self._drift_sample = drift_sample
        self._cache = cache
        if heads.memory_bank is not None:
            use_one_blas_thread()
        self._pool = DecodePool(image_decoder.memory, scheduler, threads)

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
        images: Sequence[Image],
        pool: Pool,
        visible_indices: Indices,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
        cache_key: bytes | None = None,
    ) -> list[Floats]:
        """Embeds images.

        Args:
            images: encoded images, or what was cut into patches already.
            pool: `mean` of the patch tokens, `cls`, or all `tokens` in the order of `visible_indices`.
            visible_indices: the patches that are encoded, int32 [K], the same in all images; `VisiblePatches` have
                their own.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: filled with the errors of images that are left out, by index; it may hold some already. If all
                images are left out, the error of the first is raised. None: any error of an image is raised.
            cache_key: names whose results these are, and what decides them beside the image and `visible_indices`.
                None: nothing is looked up in the cache or stored there. It must be None where `visible_indices` were
                drawn by a seed that nobody has given.

        Returns:
            A vector per image that is not left out, float32 [D]; float32 [K, D] for `tokens`.

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        sampled: list[Bytes] = []

        def prepare(image: Image, index: int, reserved: int) -> Sequence[Pass]:
            if isinstance(image, VisiblePatches):
                return [image]
            patches = self._decode(image, index, reserved, sampled).patches
            return [(_select(patches, visible_indices), visible_indices)]

        operation: Operation = "tokens" if pool == "tokens" else "embed"
        cached = await self._look_up(cache_key, (operation.encode(), visible_indices.tobytes(), b""), images, skipped)
        known: dict[int, Sequence[Result]] = {index: arrays[:1] for index, arrays in cached.known.items()}
        results = await self._infer(
            operation, images, prepare, timings, deadline, skipped, sampled=sampled, known=known
        )
        self._store(cached, images, results, skipped)
        return _pooled(results, pool)

    async def embed_by_plan(
        self,
        images: Sequence[Image],
        plan: EmbeddingPlan,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
        cache_key: bytes | None = None,
    ) -> tuple[list[Floats], EmbeddingPlan]:
        """Embeds images as a request asks for it; under load, of fewer patches if the request allows it.

        Args:
            images: encoded images, or what was cut into patches already; a single one for a plan with a mask picture.
            plan: what was asked for.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`.
            cache_key: names whose results these are. It is not used where a seed was drawn for the plan.

        Returns:
            What `embed` returns, and the plan that was carried out: it has the patches that were encoded.

        Raises:
            InvalidParameter: the mask picture has another size than the image, or nothing is white in it.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        config = self.info.config
        sampled: list[Bytes] = []
        operation, mask = plan.operation.encode(), plan.mask or b""
        if not plan.is_determined:
            cache_key = None
        cached = await self._look_up(cache_key, (operation, plan.visible_indices.tobytes(), mask), images, skipped)
        known: dict[int, Sequence[Result]] = {index: arrays[:1] for index, arrays in cached.known.items()}
        if known and len(known) == len(_answered(images, skipped)):
            if plan.mask is not None:  # of a single image, whose patches were stored with its vector
                plan = plan.encode_inside(cached.known[0][1].tolist(), "mask")
            return _pooled([result for index in sorted(known) for result in known[index]], plan.pool), plan
        if len(plan.shares) > 1:
            known = {}  # all images of an answer have the same patches, which the load decides
        with self._admit(
            plan.operation,
            len(images),
            deadline,
            skipped,
            shares=plan.shares,
            known=known,
            traceparent=timings.traceparent,
        ) as (request, pending):
            is_degraded = request.share < 1
            done = plan.degrade(request.share, config.grid) if is_degraded else plan

            def prepare(image: Image, index: int, reserved: int) -> Sequence[Pass]:
                nonlocal done
                if isinstance(image, VisiblePatches):
                    return [image]
                decoded = self._decode(image, index, reserved, sampled)
                if done.mask is not None:
                    done = done.encode_inside(self.image_decoder.read_mask(done.mask, decoded).tolist(), "mask")
                return [(_select(decoded.patches, done.visible_indices), done.visible_indices)]

            await self._pool.queue_images(
                request, pending, images, prepare, self._decode_timer(timings), timings.record_span
            )
            results = await self._wait(pending, timings)
        self._offer(sampled)
        if is_degraded:
            self._metrics.degraded_images.inc(len(results))
            # They are stored as what they are, unless a seed was drawn for them.
            key = None if plan.parameters.seed is None else cache_key
            cached = await self._look_up(key, (operation, done.visible_indices.tobytes(), mask), images, skipped)
        self._store(cached, images, results, skipped, *(() if plan.mask is None else (done.visible_indices,)))
        return _pooled(results, plan.pool), done

    async def encode(
        self,
        images: Sequence[WholeImage],
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> list[tuple[Bytes, Floats]]:
        """Patches and tokens of whole images; the arguments and errors are those of `embed`.

        Returns:
            Patches uint8 [N, P] and patch tokens float32 [N, D] per image that is not left out.
        """
        visible_indices = all_indices(self.info.config.num_patches)
        patches: dict[int, Bytes] = {}
        sampled: list[Bytes] = []

        def prepare(image: Image, index: int, reserved: int) -> Sequence[Pass]:
            assert not isinstance(image, VisiblePatches)
            patches[index] = self._decode(image, index, reserved, sampled).patches
            return [(patches[index], visible_indices)]

        tokens = await self._infer("tokens", images, prepare, timings, deadline, skipped, sampled=sampled)
        indexes = [index for index in range(len(images)) if index not in (skipped or ())]
        return [
            (patches[index], result)
            for index, result in zip(indexes, tokens, strict=True)
            if not isinstance(result, DecoderOutput)
        ]

    async def classify(
        self,
        images: Sequence[WholeImage],
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
        cache_key: bytes | None = None,
    ) -> list[Floats]:
        """Classifies images by the model's head.

        Whole images are embedded, in batches with all other embeddings. The head runs here, image by image, so that an
        image's probabilities have the same bits with any other images in the request.

        Args:
            images: encoded images.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`.
            cache_key: as in `embed`; the results are the same.

        Returns:
            The classes' probabilities per image that is not left out, float32 [C], in the order of the head's classes.

        Raises:
            NoHead: the model has no classification head.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        head = self.head
        visible_indices = all_indices(self.info.config.num_patches)
        vectors = await self.embed(images, head.config.pool, visible_indices, timings, deadline, skipped, cache_key)
        return await self.render(lambda: [head.probabilities(vector[None])[0] for vector in vectors], timings)

    async def reconstruct_passes(
        self,
        images: Sequence[WholeImage],
        choose_passes: ChoosePasses,
        passes: int,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
        cache_key: bytes | None = None,
    ) -> list[list[Reconstruction]]:
        """Reconstructs each image several times, from other visible patches in each pass.

        An image is decoded once, and each of its passes counts as an image in the queue.

        Args:
            images: encoded images, or squares that were cut into patches already.
            choose_passes: chooses the visible patches of each pass of an image; the same number in all passes.
            passes: number of passes of each image.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`; the images that are left out have no reconstruction.
            cache_key: as in `embed`; the masks of all passes are among what it names.

        Returns:
            The passes of each image that is not left out.

        Raises:
            NoDecoder: the model cannot reconstruct.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        self.require_decoder()
        prepared: dict[int, Sequence[Pass]] = {}
        sampled: list[Bytes] = []

        def prepare(image: Image, index: int, reserved: int) -> Sequence[Pass]:
            assert not isinstance(image, VisiblePatches)
            decoded = self._decode(image, index, reserved, sampled)
            prepared[index] = [(decoded.patches, visible_indices) for visible_indices in choose_passes(decoded)]
            return prepared[index]

        cached = await self._look_up(cache_key, (b"reconstruct",), images, skipped, passes)
        known: dict[int, Sequence[Result]] = {}
        for index, (patches, *outputs) in cached.known.items():
            of_passes = [outputs[first : first + 3] for first in range(0, len(outputs), 3)]
            prepared[index] = [(patches, visible_indices) for visible_indices, _, _ in of_passes]
            known[index] = [DecoderOutput(pixels, error) for _, pixels, error in of_passes]
        results = iter(
            await self._infer("reconstruct", images, prepare, timings, deadline, skipped, passes, sampled, known)
        )
        by_image = []
        for index in _answered(images, skipped):
            reconstructions = []
            for patches, visible_indices in prepared[index]:
                result = next(results)
                assert isinstance(result, DecoderOutput)
                reconstructions.append(Reconstruction(patches, result.pixels, result.error, visible_indices))
            by_image.append(reconstructions)
            outputs = [array for one in reconstructions for array in (one.visible_indices, one.pixels, one.error)]
            cached.store(index, (reconstructions[0].patches, *outputs))
        return by_image

    async def embed_subsets(
        self, images: Sequence[WholeImage], subsets: Sequence[Indices], timings: Timings, deadline: float = math.inf
    ) -> tuple[Bytes, Floats, Floats]:
        """Embeds whole images, and the first of them also from subsets of its patches: the others are left out.

        Args:
            images: encoded images.
            subsets: visible indices of each pass of the first image, int32 [K] with one K.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.

        Returns:
            The patches of the first image, uint8 [N, P]; the pooled vectors of the whole images, float32 [B, 2, D]; and
            those of the subsets, float32 [passes, 2, D].

        Raises:
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        everything = all_indices(self.info.config.num_patches)
        decoded: dict[int, Bytes] = {}
        sampled: list[Bytes] = []

        def prepare(image: Image, index: int, reserved: int) -> Sequence[Pass]:
            assert not isinstance(image, VisiblePatches)
            decoded[index] = self._decode(image, index, reserved, sampled).patches
            return [(decoded[index], everything)]

        with (
            self._admit("embed", len(images), deadline, traceparent=timings.traceparent) as (whole, whole_pending),
            self._admit("embed", 1, deadline, passes=len(subsets), traceparent=timings.traceparent) as (
                request,
                pending,
            ),
        ):
            await self._pool.queue_images(
                whole, whole_pending, images, prepare, self._decode_timer(timings), timings.record_span
            )
            patches = decoded[0]
            gathered = await self.run_in_pool(lambda: [patches[visible_indices] for visible_indices in subsets])
            for number, visible_indices in enumerate(subsets):
                self.scheduler.put(request, number, gathered[number], visible_indices)
            vectors = np.array(await self._wait(whole_pending, timings))
            passes = np.array(await self._wait(pending, timings))
        self._offer(sampled)
        return patches, vectors, passes

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
        self,
        cache_key: bytes | None,
        context: tuple[bytes, ...],
        images: Sequence[Image],
        skipped: dict[int, ServiceError] | None,
        passes: int = 1,
    ) -> CachedResults:
        """Looks the images of a request up in the cache; `context` decides a result beside `cache_key` and the image.

        Raises:
            TooManyImages: the queue could never hold the request, which is refused whatever is cached.
        """
        if self._cache is None or cache_key is None:
            return CachedResults()
        require_possible(self._cache.queue, len(images), passes)
        encoded = {index: image for index in _answered(images, skipped) if isinstance(image := images[index], bytes)}
        return await self._cache.look_up((cache_key, *context), encoded, self.run_in_pool)

    def _store(
        self,
        cached: CachedResults,
        images: Sequence[Image],
        results: Sequence[Result],
        skipped: dict[int, ServiceError] | None,
        *others: Indices,
    ) -> None:
        """Stores the vectors of a request, and `others` with each, for all images that were looked up in vain."""
        if cached.keys:
            for index, result in zip(_answered(images, skipped), results, strict=True):
                assert not isinstance(result, DecoderOutput)
                cached.store(index, (result, *others))

    async def _infer(
        self,
        operation: Operation,
        images: Sequence[Image],
        prepare: PrepareImage,
        timings: Timings,
        deadline: float,
        skipped: dict[int, ServiceError] | None,
        passes: int = 1,
        sampled: Sequence[Bytes] = (),
        known: Mapping[int, Sequence[Result]] | None = None,
    ) -> list[Result]:
        if known and len(known) == len(_answered(images, skipped)):
            return [result for index in sorted(known) for result in known[index]]
        with self._admit(
            operation, len(images), deadline, skipped, passes, known=known, traceparent=timings.traceparent
        ) as (request, pending):
            decode_timer = self._decode_timer(timings)
            await self._pool.queue_images(request, pending, images, prepare, decode_timer, timings.record_span)
            results = await self._wait(pending, timings)
        self._offer(sampled)
        return results

    def _decode(self, image: WholeImage, index: int, reserved: int, sampled: list[Bytes]) -> DecodedImage:
        """Decodes an image if it was not before, and adds its patches to `sampled` if chance chooses them."""
        if isinstance(image, bytes):
            decoded = self.image_decoder.decode(image, index, reserved)
        else:
            decoded = DecodedImage.of_patches(image, self.info.config, index)
        if random.random() < self._drift_sample:
            sampled.append(decoded.patches)
        return decoded

    def _offer(self, sampled: Sequence[Bytes]) -> None:
        """Has the drift of images measured whose request has its results, so that they are not in its way."""
        for patches in sampled:
            self.scheduler.sample(patches)

    def _decode_timer(self, timings: Timings) -> Callable[[float], None]:
        """A function that records the seconds in which an image was decoded."""

        def record(seconds: float) -> None:
            timings.decode = max(timings.decode, seconds)
            self._metrics.stage_duration.labels("decode").observe(seconds)

        return record

    @contextmanager
    def _admit(
        self,
        operation: Operation,
        count: int,
        deadline: float,
        skipped: dict[int, ServiceError] | None = None,
        passes: int = 1,
        shares: Sequence[float] = WHOLE,
        known: Mapping[int, Sequence[Result]] | None = None,
        traceparent: str = "",
    ) -> Iterator[tuple[QueuedRequest, PendingResults]]:
        """Admits a request for `count` images less those that are known, and releases it in the end."""
        pending = PendingResults(count, skipped, passes, known)
        computed = count - len(known or ())
        request = self.scheduler.admit(operation, computed * passes, deadline, pending, passes, shares, traceparent)
        try:
            yield request, pending
        finally:
            self.scheduler.release(request)
            pending.close()

    async def _wait(self, pending: PendingResults, timings: Timings) -> list[Result]:
        results = await pending.wait()
        timings.queue, timings.infer = max(timings.queue, pending.queue_s), max(timings.infer, pending.infer_s)
        return results


def _select(patches: Bytes, visible_indices: Indices) -> Bytes:
    """The visible ones of patches uint8 [N, P], uint8 [K, P]; not copied if all are visible."""
    return patches if len(visible_indices) == len(patches) else patches[visible_indices]


def _pooled(results: list[Result], pool: Pool) -> list[Floats]:
    """The vectors of a pool, float32 [D] per image, or [K, D] for `tokens`."""
    vectors = [result for result in results if not isinstance(result, DecoderOutput)]
    return vectors if pool == "tokens" else [vector[POOL_INDEX[pool]] for vector in vectors]


def _answered(images: Sequence[Image], skipped: dict[int, ServiceError] | None) -> list[int]:
    """The indexes of the images that are not left out."""
    return [index for index in range(len(images)) if index not in (skipped or ())]
