"""A mask picture that takes long, or lacks memory, holds no thread that photographs need."""

import asyncio
import functools
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.checkpoints.heads import Heads
from model.config import Preprocessing
from service.errors import InvalidParameter
from service.inference.batch_scheduler import BatchScheduler
from service.inference.decode_memory import DecodeMemory
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.images import ImageRequest
from service.inference.limits import LocalBudget
from service.inference.pipeline import Pipeline
from service.inference.reconstruction import choose_patches_by_picture, reconstruct_images
from service.metrics import Metrics
from service.parameters import EmbedParameters, ReconstructParameters
from tests.support.engines import SMALL, FakeEngine
from tests.support.image_files import jpeg_file
from tests.support.images import encoded
from tests.support.waiting import until

LARGE, HEAVY = (3000, 3000), (2000, 2000)
"""More than what photographs' threads decode; and less, but not little."""
PHOTO = encoded(Image.new("RGB", (32, 32), (5, 5, 5)))


class GatedDecoder(ImageDecoder):
    """Counts decodes of images, and holds up each decode of a large mask until `gate` is set."""

    gate = threading.Event()
    images = 0
    masks = 0

    def decode(self, *arguments: Any, **options: Any) -> DecodedImage:
        self.images += 1
        return super().decode(*arguments, **options)

    def _white_square(self, image: Any, turned: int) -> Any:
        self.masks += 1
        if image.size == LARGE:
            assert self.gate.wait(30)
        return super()._white_square(image, turned)


@asynccontextmanager
async def pipeline_of(memory: DecodeMemory) -> AsyncIterator[tuple[Pipeline, GatedDecoder]]:
    """A pipeline with one thread for photographs, and one for images that take long."""
    metrics, budget = Metrics(), LocalBudget(100_000)
    scheduler = BatchScheduler(FakeEngine(), metrics, budget)
    scheduler.start()
    decoder = GatedDecoder(SMALL, Preprocessing(), 64_000_000, memory)
    decoder.gate = threading.Event()
    pipeline = Pipeline(scheduler.engine.info, Heads(), decoder, scheduler, metrics, 1)
    try:
        yield pipeline, decoder
    finally:
        decoder.gate.set()
        pipeline.close()
        assert budget.used == 0


@functools.cache
def grey_jpeg(size: tuple[int, int]) -> bytes:
    return jpeg_file(Image.new("RGB", size, (9, 9, 9)))


@functools.cache
def left_half(size: tuple[int, int], form: str = "PNG") -> bytes:
    """A mask whose left half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return encoded(mask, form)


async def reconstruct_visible(pipeline: Pipeline, image: bytes, mask: bytes) -> list[int]:
    plan = choose_patches_by_picture(SMALL, pipeline.image_decoder, ReconstructParameters(), mask, 1)
    [[one]] = await reconstruct_images(pipeline, ImageRequest([image], deadline=math.inf), plan)
    return list(one.visible_indices)


async def embed_visible(pipeline: Pipeline, image: bytes, mask: bytes) -> list[int]:
    plan = _whole(pipeline).with_mask(mask, 1)
    _, done = await embed_images(pipeline, ImageRequest([image]), plan)
    return list(done.visible_indices)


async def embed_photo(pipeline: Pipeline) -> None:
    await asyncio.wait_for(embed_images(pipeline, ImageRequest([PHOTO]), _whole(pipeline)), 60)


def _whole(pipeline: Pipeline) -> EmbeddingPlan:
    return EmbeddingPlan.of(EmbedParameters(), pipeline.info, pipeline.heads)


@pytest.mark.parametrize("visible", [reconstruct_visible, embed_visible])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_photographs_pass_masks_that_take_long(visible: Callable[..., Any], form: str) -> None:
    """A cheap JPEG with a mask as large: its image is decoded at an eighth of its size, and its mask is not."""
    image, mask = grey_jpeg(LARGE), left_half(LARGE, form)

    async def main() -> None:
        memory = DecodeMemory()
        async with pipeline_of(memory) as (pipeline, decoder):
            waiting = [asyncio.create_task(visible(pipeline, image, mask)) for _ in range(3)]
            await until(lambda: decoder.masks and decoder.images == 3, 30)
            for _ in range(3):
                await embed_photo(pipeline)
            assert not any(task.done() for task in waiting) and decoder.masks == 1, "the masks wait for each other"
            decoder.gate.set()
            expected = [1, 3] if visible is reconstruct_visible else [0, 2]
            assert await asyncio.gather(*waiting) == [expected] * 3
            assert decoder.images == 3 + 3, "an image is decoded once, whatever its mask waits for"
            assert memory.used == 0

    asyncio.run(main())


def test_a_mask_waits_for_memory_without_a_thread() -> None:
    """Its image, a JPEG, needs little memory, and it needs about 50 MB of the 30 that are free."""
    image = grey_jpeg(HEAVY)
    mask = Image.new("RGBA", HEAVY, (0, 0, 0, 255))
    mask.paste((255, 255, 255, 255), (0, 0, 1000, 2000))

    async def main() -> None:
        memory = DecodeMemory(LocalBudget(100_000_000))
        async with pipeline_of(memory) as (pipeline, decoder):
            reservation = await memory.reserve(70_000_000)
            waiting = [asyncio.create_task(reconstruct_visible(pipeline, image, encoded(mask))) for _ in range(2)]
            await until(lambda: decoder.images == 2, 30)
            for _ in range(3):  # the only thread is free
                await embed_photo(pipeline)
            assert not any(task.done() for task in waiting) and not decoder.masks
            reservation.release()
            assert await asyncio.gather(*waiting) == [[1, 3]] * 2
            assert (decoder.images, decoder.masks, memory.used) == (2 + 3, 2, 0)

    asyncio.run(main())


def test_a_mask_that_is_refused_leaves_nothing_behind() -> None:
    async def main() -> None:
        memory = DecodeMemory(LocalBudget(1_000_000_000))
        async with pipeline_of(memory) as (pipeline, decoder):
            decoder.gate.set()
            black = encoded(Image.new("L", LARGE))
            for mask in (black, left_half((3000, 3001))):
                with pytest.raises(InvalidParameter):
                    await reconstruct_visible(pipeline, grey_jpeg(LARGE), mask)
            assert memory.used == 0 and decoder.masks == 1
            await embed_photo(pipeline)

    asyncio.run(main())


def test_a_small_mask_is_read_with_its_image() -> None:
    async def main() -> None:
        async with pipeline_of(DecodeMemory()) as (pipeline, decoder):
            image = encoded(Image.fromarray(np.full((64, 64, 3), 7, np.uint8)))
            assert await reconstruct_visible(pipeline, image, left_half((64, 64))) == [1, 3]
            assert (decoder.images, decoder.masks) == (1, 1)

    asyncio.run(main())
