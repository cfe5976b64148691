"""Feature extraction: one pass of images through an engine, which reads each image once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.arrays import Bytes, Floats
from model.engines.base import Engine, gather_visible
from model.evaluation.similarity import psnr, ssim
from model.evaluation.spec import EvalSpec
from model.images.preprocess import unpatchify
from model.images.render import composite
from model.masking import removed_flags

T = TypeVar("T")
THUMBNAIL = 16
"""Side in pixels of the thumbnails that a model is compared with."""
Reader = Callable[[str], Bytes]
"""Reads the model's square of an image file as patches uint8 [N, P]. Several threads call it; it may raise
`UnreadableImage`."""


class UnreadableImage(Exception):
    """An image cannot be used; the message is one sentence that names it and says why."""


class Progress(Protocol):
    """Receives the progress of a pass."""

    def advance(self) -> None:
        """One more image is done."""

    def skip(self, reason: str) -> None:
        """One more image cannot be used."""


class Features(NamedTuple):
    """Results for the n images that could be used, in the order in which they were sent."""

    numbers: NDArray[np.int64]
    """Numbers of the images, which are indices in the paths of `extract`, [n]."""
    vectors: Floats
    """Pooled vectors for each share of the patches, float32 [n, shares, 2, D]."""
    reconstruction: NDArray[np.float64]
    """Loss over the removed patches, PSNR in dB and SSIM of the composite for each mask, [n, masks, 3]."""
    thumbnails: Floats
    """Pixels of 16 x 16 in 0..255, float32 [n, 768]."""

    def select(self, images: NDArray[np.bool_]) -> Self:
        """The results for some of the images [n]."""
        return type(self)(
            self.numbers[images], self.vectors[images], self.reconstruction[images], self.thumbnails[images]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins the results of several batches, at least one."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def extract(
    engine: Engine, read: Reader, paths: Sequence[str], numbers: Iterable[int], spec: EvalSpec, progress: Progress
) -> Features | None:
    """Sends images through all lanes of an engine.

    Args:
        engine: computes vectors and reconstructions.
        read: reads an image's patches.
        paths: paths of all images.
        numbers: indices in `paths` of the images to send.
        spec: the shares to embed and the masks to reconstruct from.
        progress: is told of each image.

    Returns:
        The results; None if no image could be used.

    Raises:
        EngineError: the engine cannot run a batch.
    """
    lanes: SimpleQueue[int] = SimpleQueue()
    for lane in range(engine.info.lanes):
        lanes.put(lane)

    def process(batch: Sequence[int]) -> tuple[Features | None, list[str]]:
        patches, usable, refused = [], [], []
        for number in batch:
            try:
                patches.append(read(paths[number]))
                usable.append(number)
            except UnreadableImage as error:
                refused.append(str(error))
        if not usable:
            return None, refused
        features = _run_batch(engine, lanes, np.stack(patches), np.array(usable), spec)
        finite = _all_finite(features.vectors) & _all_finite(features.reconstruction)
        refused += [f"{paths[number]}: the engine gave no finite numbers" for number in features.numbers[~finite]]
        return features.select(finite), refused

    parts = []
    # Two threads per lane: while one uses the lane, the other decodes images or compares pictures.
    for features, refused in _map_ahead(process, _batches(numbers, engine.info.preferred_batch), 2 * engine.info.lanes):
        for reason in refused:
            progress.skip(reason)
        if features is not None and len(features.numbers):
            parts.append(features)
            for _ in features.numbers:
                progress.advance()
    return Features.concatenate(parts) if parts else None


def _run_batch(
    engine: Engine, lanes: SimpleQueue[int], patches: Bytes, numbers: NDArray[np.int64], spec: EvalSpec
) -> Features:
    """Computes the features of images with patches uint8 [B, N, P] and numbers [B], on the first free lane."""
    to_embed = [np.stack([spec.visible_to_embed(keep, n) for n in numbers.tolist()]) for keep in spec.keeps]
    to_reconstruct = [np.stack([spec.visible_to_reconstruct(mask, n) for n in numbers.tolist()]) for mask in spec.masks]
    lane = lanes.get()
    try:
        vectors = [engine.embed(lane, gather_visible(patches, visible), visible) for visible in to_embed]
        reconstructed = [engine.reconstruct(lane, patches, visible) for visible in to_reconstruct]
    finally:
        lanes.put(lane)
    quality = np.empty((len(numbers), len(spec.masks), 3))
    for m, (visible, (pixels, error)) in enumerate(zip(to_reconstruct, reconstructed, strict=True)):
        for b, image in enumerate(patches):
            removed = removed_flags(visible[b], len(image)).astype(bool)
            original, result = unpatchify(image), unpatchify(composite(image, pixels[b], visible[b]))
            loss = error[b][removed].mean(dtype=np.float64)
            quality[b, m] = loss, psnr(original, result), ssim(original, result)
    stacked = np.stack(vectors, axis=1) if vectors else np.empty((len(numbers), 0, 2, engine.info.config.embed_dim))
    thumbnails = np.stack([_thumbnail(image) for image in patches])
    return Features(numbers, stacked.astype(np.float32), quality, thumbnails)


def _thumbnail(patches: Bytes) -> Floats:
    small = Image.fromarray(unpatchify(patches)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32).ravel()


def _all_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether all numbers of each image are finite, [n, …] -> [n]."""
    return np.asarray(np.isfinite(array.reshape(len(array), -1)).all(axis=1))


def _batches(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    batch = []
    for number in numbers:
        batch.append(number)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _map_ahead(process: Callable[[list[int]], T], batches: Iterable[list[int]], threads: int) -> Iterator[T]:
    """Results of `process` in the order of the batches; threads compute them a little ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="evaluate")
    running: deque[Future[T]] = deque()
    try:
        for batch in batches:
            if len(running) == 2 * threads:
                yield running.popleft().result()
            running.append(pool.submit(process, batch))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
