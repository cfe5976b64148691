"""From encoded images to results: decoding in a pool of threads, then the scheduler; for routes and commands alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Head, Heads
from model.engines.base import EngineInfo
from model.masking import all_indices
from service.errors import NoDecoder, NoHead, ServiceError
from service.inference.decode_pool import DecodePool, Pass, PrepareImage
from service.inference.embedding import EmbeddingPlan
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.images import Image, VisiblePatches, WholeImage
from service.inference.limits import WHOLE
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
    ) -> None:
        """For one engine, with a pool of `threads` threads that decode images and write answers.

        The share `drift_sample` of the images also goes to `Scheduler.sample`, once their request has its results.
        """
        self.info = info
        self.heads = heads
        self.image_decoder = image_decoder
        self.scheduler = scheduler
        self._metrics = metrics
        self._drift_sample = drift_sample
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
        return _pooled(await self._infer(operation, images, prepare, timings, deadline, skipped, sampled=sampled), pool)

    async def embed_by_plan(
        self,
        images: Sequence[Image],
        plan: EmbeddingPlan,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
    ) -> tuple[list[Floats], EmbeddingPlan]:
        """Embeds images as a request asks for it; under load, of fewer patches if the request allows it.

        Args:
            images: encoded images, or what was cut into patches already; a single one for a plan with a mask picture.
            plan: what was asked for.
            timings: filled with the seconds of each stage.
            deadline: in seconds of time.monotonic(); later than that no image enters a batch.
            skipped: as in `embed`.

        Returns:
            What `embed` returns, and the plan that was carried out: it has the patches that were encoded.

        Raises:
            InvalidParameter: the mask picture has another size than the image, or nothing is white in it.
            ServiceError: an image is refused, the queue is full, or the engine has failed.
        """
        config = self.info.config
        sampled: list[Bytes] = []
        with self._admit(
            plan.operation, len(images), deadline, skipped, shares=plan.shares, traceparent=timings.traceparent
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

    async def reconstruct_passes(
        self,
        images: Sequence[WholeImage],
        choose_passes: ChoosePasses,
        passes: int,
        timings: Timings,
        deadline: float = math.inf,
        skipped: dict[int, ServiceError] | None = None,
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

        results = iter(await self._infer("reconstruct", images, prepare, timings, deadline, skipped, passes, sampled))
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
    ) -> list[Result]:
        with self._admit(operation, len(images), deadline, skipped, passes, traceparent=timings.traceparent) as (
            request,
            pending,
        ):
            await self._pool.queue_images(
                request, pending, images, prepare, self._decode_timer(timings), timings.record_span
            )
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
        traceparent: str = "",
    ) -> Iterator[tuple[QueuedRequest, PendingResults]]:
        """Admits a request for `count` images, and releases it in the end."""
        pending = PendingResults(count, skipped, passes)
        request = self.scheduler.admit(operation, count * passes, deadline, pending, passes, shares, traceparent)
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
