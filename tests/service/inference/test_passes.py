"""Several passes of one image: decoded once, weighed in the queue as images, blamed as one image."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from model.checkpoints.heads import Heads
from model.config import Preprocessing
from service.errors import InferenceFailed, QueueFull, ServiceError, TooManyImages, UndecodableImage
from service.inference.batch_scheduler import BatchScheduler
from service.inference.image_decoder import ImageDecoder
from service.inference.images import ImageRequest
from service.inference.limits import IMAGE, LocalBudget
from service.inference.pending_results import PendingResults
from service.inference.pipeline import Pipeline
from service.inference.reconstruction import MaskPlan, Reconstruction, reconstruct_images
from service.metrics import Metrics
from tests.service.workers.conftest import connected
from tests.support.engines import SMALL, FakeEngine
from tests.support.images import encoded
from tests.support.queueing import ALL_FOUR, Gate, image, run

POISON = 201


def grey(value: int) -> bytes:
    return encoded(Image.new("RGB", (32, 32), (value, value, value)), "PNG")


EACH_PATCH = [np.array([patch], dtype=np.int32) for patch in range(4)]
"""Four passes, each of which sees one patch."""


async def reconstruct(
    engine: FakeEngine, *images: bytes, queue_images: int = 512, skipped: dict[int, ServiceError] | None = None
) -> list[list[Reconstruction]]:
    metrics, budget = Metrics(), LocalBudget(queue_images * IMAGE)
    scheduler = BatchScheduler(engine, metrics, budget)
    scheduler.start()
    pipeline = Pipeline(SMALL_INFO, Heads(), ImageDecoder(SMALL, Preprocessing(), 10_000), scheduler, metrics, 2)
    try:
        return await reconstruct_images(pipeline, ImageRequest(images, skipped=skipped), MaskPlan((), EACH_PATCH))
    finally:
        pipeline.close()
        assert budget.used == 0


SMALL_INFO = FakeEngine().info


def test_every_pass_has_its_own_visible_patches_and_the_image_of_all() -> None:
    engine = FakeEngine(3)
    answers = run(reconstruct(engine, grey(5), grey(6)))
    assert [[int(one.patches[0, 0]) for one in passes] for passes in answers] == [[5] * 4, [6] * 4]
    assert [[one.visible_indices.tolist() for one in passes] for passes in answers] == [[[0], [1], [2], [3]]] * 2
    assert [[one.error[0] for one in passes] for passes in answers] == [[5] * 4, [6] * 4]
    assert sorted(number for _, _, images in engine.batches for number in images) == [5] * 4 + [6] * 4


def test_passes_are_images_to_the_queue() -> None:
    with pytest.raises(TooManyImages, match="2 images in 4 passes each in one request, but the queue holds 7"):
        run(reconstruct(FakeEngine(), grey(5), grey(6), queue_images=7))
    with pytest.raises(TooManyImages, match="1 image in 4 passes in one request, but the queue holds 3"):
        run(reconstruct(FakeEngine(), grey(5), queue_images=3))
    gate = Gate()

    async def main() -> None:
        budget = LocalBudget(8 * IMAGE)
        scheduler = BatchScheduler(FakeEngine(before=gate), Metrics(), budget)
        scheduler.admit("embed", 6, 1e9, PendingResults(2, passes=3), 3)
        with pytest.raises(QueueFull):
            scheduler.admit("embed", 4, 1e9, PendingResults(1, passes=4), 4)

    run(main())


def fail_on_poison(images: list[int]) -> None:
    if POISON in images:
        raise RuntimeError("poison")


@pytest.mark.parametrize("engine", [FakeEngine(not_a_number=POISON), FakeEngine(before=fail_on_poison)])
def test_a_pass_that_fails_blames_its_image(engine: FakeEngine) -> None:
    with pytest.raises(InferenceFailed, match="image 1") as failure:
        run(reconstruct(engine, grey(5), grey(POISON)))
    assert failure.value.details == {"image": 1}


def test_images_whose_passes_fail_are_left_out_as_a_whole() -> None:
    skipped: dict[int, ServiceError] = {}
    answers = run(reconstruct(FakeEngine(2, not_a_number=POISON), grey(POISON), b"no image", grey(6), skipped=skipped))
    assert [[one.error[0] for one in passes] for passes in answers] == [[6] * 4]
    assert {number: type(error) for number, error in skipped.items()} == {0: InferenceFailed, 1: UndecodableImage}


def test_an_image_that_fails_in_one_pass_of_several_has_no_results() -> None:
    """The results of its other passes come before and after the failure."""

    async def main() -> Sequence[object]:
        skipped: dict[int, ServiceError] = {}
        pending = PendingResults(2, skipped, passes=3)
        for index in (0, 5, 3):
            pending.on_result(index, np.full((2, 8), index, np.float32), 0, 0)
        pending.on_result(1, InferenceFailed("", image=0), 0, 0)
        pending.on_result(2, np.zeros((2, 8), np.float32), 0, 0)
        pending.on_result(4, np.full((2, 8), 4, np.float32), 0, 0)
        assert list(skipped) == [0]
        return await pending.wait()

    assert [result[0, 0] for result in run(main())] == [3, 4, 5]


def test_workers_send_passes_too() -> None:
    async def main() -> None:
        async with connected(FakeEngine(4, not_a_number=POISON), slots=3) as pair:
            skipped: dict[int, ServiceError] = {}
            pending = PendingResults(3, skipped, passes=2)
            request = pair.client.admit("embed", 6, 1e9, pending, 2)
            for index, number in enumerate((5, 5, POISON, POISON, 6, 6)):
                pair.client.put(request, index, image(number), ALL_FOUR)
            results = await asyncio.wait_for(pending.wait(), 60)
            pair.client.release(request)
            assert [row[0, 0] for row in results] == [5, 5, 6, 6]
            assert {number: error.details for number, error in skipped.items()} == {1: {"image": 1}}
            await pair.until(lambda: len(pair.client._free) == 3)

    run(main())
