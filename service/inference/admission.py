"""A request whose images have room in the queue: it decodes and queues them, and waits for their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from model.arrays import Bytes, Indices
from service.inference.decode_memory import LongDecode, MemoryShortage
from service.inference.decode_pool import DecodePool
from service.inference.image_decoder import DecodedImage
from service.inference.images import Image, ImageRequest, VisiblePatches, WholeImage
from service.inference.passes import ImageResults, Inference, Pass
from service.inference.pending_results import PendingResults
from service.inference.queue import QueuedRequest


class AdmittedRequest:
    """A request that the scheduler has admitted, on the way to its results."""

    def __init__(
        self,
        request: ImageRequest,
        inference: Inference,
        queued: QueuedRequest,
        pending: PendingResults,
        known: Mapping[int, ImageResults],
        pool: DecodePool,
        decode: Callable[[WholeImage, int, int], DecodedImage],
    ) -> None:
        """Nothing is decoded yet.

        Args:
            request: the images.
            inference: what is asked for; if the load gives the images a smaller share, less is computed.
            queued: as the scheduler admitted it.
            pending: the results that are to come.
            known: the results that need not be computed, by the index of the image.
            pool: decodes the images.
            decode: decodes image `index` with as many bytes of memory as are reserved for it.
        """
        if queued.share < 1:
            assert inference.degrade is not None
            inference = inference.degrade(queued.share)
        self.inference = inference
        """What is computed."""
        self._request = request
        self._queued = queued
        self._pending = pending
        self._pool = pool
        self._decode = decode
        self._known = known
        self._decoded: dict[int, tuple[Bytes | None, Sequence[Indices]]] = {}
        """The patches of each image, if they are kept, and the visible ones of each pass."""
        self._without_mask: dict[int, DecodedImage] = {}
        """The images that are decoded, while their mask pictures wait for a thread or for memory."""

    async def queue_images(self) -> None:
        """Decodes the images, and queues them.

        Raises:
            ServiceError: an image is refused.
        """
        request = self._request
        await self._pool.queue_images(self._queued, self._pending, request.images, self._prepare, request.timings)

    def queue_passes(self, index: int, passes: Sequence[Pass]) -> None:
        """Queues the passes of image `index`, which was decoded for another request."""
        self._decoded[index] = None, [visible_indices for _, visible_indices in passes]
        self._pool.queue_passes(self._queued, index, passes)

    def patches(self, index: int) -> Bytes:
        """Image `index`, uint8 [N, P], once it is queued; only for an inference that keeps patches."""
        patches, _ = self._decoded[index]
        assert patches is not None
        return patches

    async def wait(self) -> list[ImageResults]:
        """Returns the results of each image that is not left out.

        Raises:
            ServiceError: the engine has failed.
        """
        pending, timings = self._pending, self._request.timings
        outputs = iter(await pending.wait())
        timings.queue, timings.infer = max(timings.queue, pending.queue_s), max(timings.infer, pending.infer_s)
        results = []
        for index in self._request.answered:
            of_image = [next(outputs) for _ in range(self.inference.passes)]
            results.append(self._known.get(index) or ImageResults(*self._decoded[index], of_image))
        return results

    def _prepare(self, image: Image, index: int, reserved: int) -> Sequence[Pass]:
        if isinstance(image, VisiblePatches):
            self._decoded[index] = None, [image.visible_indices]
            return [image]
        decoded = self._without_mask.pop(index, None)
        if decoded is None:
            decoded, reserved = self._decode(image, index, reserved), 0
        try:
            visible = self.inference.choose_visible(decoded, reserved)
        except (LongDecode, MemoryShortage):
            self._without_mask[index] = decoded  # the pool calls again, and then only the mask is decoded
            raise
        self._decoded[index] = decoded.patches if self.inference.keeps_patches else None, visible
        return [self.inference.gather(decoded.patches, visible_indices) for visible_indices in visible]
