"""One pass of images through an engine: everything that is asked of an image is asked at once, so it is read once."""

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
from model.images.render import picture
from model.masking import removed_flags

T = TypeVar("T")
THUMBNAIL = 16
"""Side in pixels of the thumbnails that a model is compared with."""
Read = Callable[[str], Bytes]
"""A path -> the model's square as patches uint8 [N, P]; called from several threads; may raise `Unreadable`."""


class Unreadable(Exception):
    """An image that cannot be used; one sentence names it and says why."""


class Progress(Protocol):
    """Who is told of each image."""

    def advance(self) -> None:
        """One more is done."""

    def skip(self, reason: str) -> None:
        """One more cannot be used."""


class Features(NamedTuple):
    """What came of those n images that could be used, in the order in which they were asked about."""

    numbers: NDArray[np.int64]
    """Of the images, [n]."""
    vectors: Floats
    """Pooled vectors for each share that was embedded, float32 [n, shares, 2, D]."""
    painted: NDArray[np.float64]
    """For each mask: loss over the removed patches, PSNR in dB and SSIM of the composite, [n, masks, 3]."""
    thumbnails: Floats
    """Pixels of 16 x 16 in 0..255, float32 [n, 768]."""

    def only(self, images: NDArray[np.bool_]) -> Self:
        """Some of the images [n]."""
        return type(self)(self.numbers[images], self.vectors[images], self.painted[images], self.thumbnails[images])

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Of several passes, at least one."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def ask(
    engine: Engine, read: Read, paths: Sequence[str], numbers: Iterable[int], questions: EvalSpec, progress: Progress
) -> Features | None:
    """Sends images through all lanes of an engine.

    Args:
        engine: what computes.
        read: gives an image's patches.
        paths: of all images there are.
        numbers: places in `paths` of those to send.
        questions: what to compute.
        progress: told of each image.

    Returns:
        None if none of them could be used.

    Raises:
        EngineError: the engine cannot run a batch.
    """
    lanes: SimpleQueue[int] = SimpleQueue()
    for lane in range(engine.info.lanes):
        lanes.put(lane)

    def work(batch: Sequence[int]) -> tuple[Features | None, list[str]]:
        patches, good, refused = [], [], []
        for number in batch:
            try:
                patches.append(read(paths[number]))
                good.append(number)
            except Unreadable as error:
                refused.append(str(error))
        answers = _answered(engine, lanes, np.stack(patches), np.array(good), questions) if good else None
        if answers is not None:
            finite = _all_finite(answers.vectors) & _all_finite(answers.painted)
            refused += [f"{paths[number]}: the engine gave no finite numbers" for number in answers.numbers[~finite]]
            answers = answers.only(finite)
        return answers, refused

    parts = []
    # Two threads a lane: while one has the lane, the other decodes images or compares pictures.
    for answers, refused in _ahead(work, _batches(numbers, engine.info.preferred_batch), 2 * engine.info.lanes):
        for reason in refused:
            progress.skip(reason)
        if answers is not None and len(answers.numbers):
            parts.append(answers)
            for _ in answers.numbers:
                progress.advance()
    return Features.together(parts) if parts else None


def composite(patches: Bytes, pixels: Bytes, visible_indices: NDArray[np.int32]) -> NDArray[np.uint8]:
    """What is visible kept and the rest painted: patches [N, P], pixels [N, P], positions [K] -> uint8 [S, S, 3]."""
    removed = removed_flags(visible_indices, len(patches)).astype(bool)[:, None]
    return picture(np.where(removed, pixels, patches))


def _answered(
    engine: Engine, lanes: SimpleQueue[int], patches: Bytes, numbers: NDArray[np.int64], questions: EvalSpec
) -> Features:
    """Patches uint8 [B, N, P] of images [B]."""
    kept = [np.stack([questions.kept(keep, n) for n in numbers.tolist()]) for keep in questions.keeps]
    visible = [np.stack([questions.visible(mask, n) for n in numbers.tolist()]) for mask in questions.masks]
    lane = lanes.get()
    try:
        vectors = [
            engine.embed(lane, gather_visible(patches, visible_indices), visible_indices) for visible_indices in kept
        ]
        painted = [engine.reconstruct(lane, patches, visible_indices) for visible_indices in visible]
    finally:
        lanes.put(lane)
    figures = np.empty((len(numbers), len(visible), 3))
    for m, (visible_indices, (pixels, error)) in enumerate(zip(visible, painted, strict=True)):
        for b, image in enumerate(patches):
            removed = removed_flags(visible_indices[b], len(image)).astype(bool)
            original, shown = picture(image), composite(image, pixels[b], visible_indices[b])
            loss = error[b][removed].mean(dtype=np.float64)
            figures[b, m] = loss, psnr(original, shown), ssim(original, shown)
    stacked = np.stack(vectors, axis=1) if vectors else np.empty((len(numbers), 0, 2, engine.info.config.embed_dim))
    thumbnails = np.stack([_thumbnail(image) for image in patches])
    return Features(numbers, stacked.astype(np.float32), figures, thumbnails)


def _thumbnail(patches: Bytes) -> Floats:
    small = Image.fromarray(picture(patches)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32).ravel()


def _all_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether every number of an image is, [n, …] -> [n]."""
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


def _ahead(work: Callable[[list[int]], T], batches: Iterable[list[int]], threads: int) -> Iterator[T]:
    """Results of `work` in the order of the batches, computed by threads a little ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="evaluate")
    running: deque[Future[T]] = deque()
    try:
        for batch in batches:
            if len(running) == 2 * threads:
                yield running.popleft().result()
            running.append(pool.submit(work, batch))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
