"""Drift: its figures by NumPy, and that no request waits for them, is refused for them, or fails with them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads, Whitening
from model.engines.base import FatalEngineError, ServedModel
from service.api.app import create_app
from service.inference.batch_scheduler import BatchScheduler
from service.inference.drift import MAX_WAITING, DriftMonitor
from service.inference.limits import IMAGE, LocalBudget
from service.metrics import Metrics
from service.settings import Settings
from tests.service.workers.conftest import connected
from tests.support.engines import NARROW, SMALL, FakeEngine
from tests.support.images import encoded
from tests.support.metrics import sample
from tests.support.queueing import Gate, admit, ask, gauge, image, run, run_ready_tasks
from tests.support.waiting import until

GENERATOR = np.random.default_rng(0)
CENTRE, MATRIX = GENERATOR.normal(size=8).astype("f4"), GENERATOR.normal(size=(8, 3)).astype("f4")
HEADS = Heads(None, {"mean": Whitening(CENTRE, MATRIX)})
MEASURED = ("mae_drift_samples_total", "measured")


class Telling(FakeEngine):
    """The mean vector repeats the image's grey, the cls vector is far away, and a removed patch has the error K + 1."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        vectors = super().embed(lane, patches, visible_indices)
        vectors[:, 0] = 1e6
        return vectors

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        pixels, error = super().reconstruct(lane, patches, visible_indices)
        error[:] = visible_indices.shape[1] + 1
        np.put_along_axis(error, visible_indices, 1e6, axis=1)
        return pixels, error


@contextlib.asynccontextmanager
async def scheduler_with_drift(engine: FakeEngine, heads: Heads = HEADS) -> AsyncIterator[BatchScheduler]:
    metrics = Metrics()
    scheduler = BatchScheduler(engine, metrics, LocalBudget(8 * IMAGE), drift=DriftMonitor(engine, heads, metrics))
    scheduler.start()
    try:
        yield scheduler
        assert scheduler._images.used == 0
    finally:
        scheduler.stop(5)


def outcomes(scheduler: BatchScheduler, outcome: str) -> float:
    return gauge(scheduler, "mae_drift_samples_total", outcome=outcome)


def test_distance_and_loss_by_hand() -> None:
    async def main() -> None:
        async with scheduler_with_drift(Telling(config=NARROW.model_copy(update={"embed_dim": 8}))) as scheduler:
            for grey in (9, 200):
                scheduler.sample(np.full((16, 192), grey, np.uint8))
            await until(lambda: outcomes(scheduler, "measured") == 2)
            white = [(np.full(8, grey, np.float64) - CENTRE) @ MATRIX for grey in (9, 200)]
            expected = sum(np.linalg.norm(vector) / 3**0.5 for vector in white)
            assert gauge(scheduler, "mae_drift_distance_sum") == pytest.approx(expected, rel=1e-5)
            # A quarter of 16 patches is visible: the removed ones have the error 5.
            assert gauge(scheduler, "mae_drift_loss_sum") == pytest.approx(2 * 5)
            assert gauge(scheduler, "mae_drift_loss_count") == gauge(scheduler, "mae_drift_distance_count") == 2

    run(main())


@pytest.mark.parametrize(
    ("heads", "depth", "distances", "losses"), [(Heads(), 1, 0, 1), (HEADS, 0, 1, 0), (HEADS, 1, 1, 1)]
)
def test_what_the_model_lacks_is_not_measured(heads: Heads, depth: int, distances: int, losses: int) -> None:
    async def main() -> None:
        engine = FakeEngine(config=SMALL.model_copy(update={"decoder_depth": depth}))
        async with scheduler_with_drift(engine, heads) as scheduler:
            scheduler.sample(image(1))
            await until(lambda: outcomes(scheduler, "measured") == 1)
            assert gauge(scheduler, "mae_drift_distance_count") == distances
            assert gauge(scheduler, "mae_drift_loss_count") == losses

    run(main())


def test_a_model_that_lacks_both_measures_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    monitor = DriftMonitor(FakeEngine(config=SMALL.model_copy(update={"decoder_depth": 0})), Heads(), Metrics())
    monitor.offer(image(1))
    assert monitor.take() is None and "measures nothing" in caplog.text


def test_requests_go_first_and_between_the_figures_of_a_sample() -> None:
    gate = Gate()
    engine = FakeEngine(4, before=gate)

    async def main() -> None:
        async with scheduler_with_drift(engine) as scheduler:
            scheduler.sample(image(100))
            await gate.wait_until_reached()  # the distance of the sample
            scheduler.sample(image(101))
            waiting = [asyncio.create_task(ask(scheduler, number)) for number in (1, 2)]
            await run_ready_tasks()
            gate.opened.set()
            await asyncio.gather(*waiting)
            await until(lambda: outcomes(scheduler, "measured") == 2)

    run(main())
    kinds = [(operation, images) for operation, _, images in engine.batches]
    assert kinds[:3] == [("embed", [100]), ("embed", [1, 2]), ("reconstruct", [100])]
    assert kinds[3:] == [("embed", [101]), ("reconstruct", [101])]


def test_no_sample_is_measured_while_an_image_is_decoded() -> None:
    engine = FakeEngine()

    async def main() -> None:
        async with scheduler_with_drift(engine) as scheduler:
            with admit(scheduler, 2) as call:
                scheduler.sample(image(100))
                await asyncio.sleep(0.05)
                assert engine.batches == []
                call.put_all([1, 2])
                await call.results()
            await until(lambda: outcomes(scheduler, "measured") == 1)

    run(main())
    assert 100 not in engine.batches[0][2]


def test_one_lane_of_two_stays_free() -> None:
    gate = Gate()
    engine = FakeEngine(lanes=2, before=lambda images: gate(images) if images[0] >= 100 else None)

    async def main() -> None:
        async with scheduler_with_drift(engine) as scheduler:
            for number in range(3):
                scheduler.sample(image(100 + number))
            await gate.wait_until_reached()
            assert [row[0, 0] for row in await ask(scheduler, 5)] == [5]
            assert [images for _, _, images in engine.batches] == [[100], [5]]
            gate.opened.set()
            await until(lambda: outcomes(scheduler, "measured") == 3)

    run(main())


def test_samples_take_no_room_and_those_too_many_are_dropped() -> None:
    gate = Gate()
    engine = FakeEngine(8, before=gate)

    async def main() -> None:
        async with scheduler_with_drift(engine) as scheduler:
            busy = asyncio.create_task(ask(scheduler, 1))
            await gate.wait_until_reached()
            for number in range(MAX_WAITING + 3):
                scheduler.sample(image(100 + number))
            assert outcomes(scheduler, "dropped") == 3
            assert gauge(scheduler, "mae_queue_images") == scheduler._images.used == 0
            with admit(scheduler, 8):  # as many as the queue holds
                pass
            gate.opened.set()
            await busy
            await until(lambda: outcomes(scheduler, "measured") == MAX_WAITING)

    run(main())


def test_a_failure_is_counted_and_harms_no_request() -> None:
    def before(images: list[int]) -> None:
        if images == [100]:
            raise RuntimeError("bad luck")

    async def main() -> None:
        async with scheduler_with_drift(FakeEngine(before=before, not_a_number=101)) as scheduler:
            for number in (100, 101, 102):
                scheduler.sample(image(number))
            await until(lambda: outcomes(scheduler, "measured") == 1)
            assert outcomes(scheduler, "failed") == 2
            for kind in ("raised", "not_finite"):
                assert gauge(scheduler, "mae_engine_failures_total", kind=kind) == 1
            assert [row[0, 0] for row in await ask(scheduler, 5)] == [5] and scheduler.lost is None

    run(main())


def test_a_lost_device_is_noticed() -> None:
    def before(images: list[int]) -> None:
        raise FatalEngineError("the device is gone")

    async def main() -> None:
        lost: list[str] = []
        metrics, engine = Metrics(), FakeEngine(before=before)
        drift = DriftMonitor(engine, HEADS, metrics)
        scheduler = BatchScheduler(engine, metrics, LocalBudget(8 * IMAGE), on_lost=lost.append, drift=drift)
        scheduler.start()
        scheduler.sample(image(1))
        await until(lambda: bool(lost))
        assert "the device is gone" in lost[0]
        scheduler.stop(5)

    run(main())


def test_a_worker_hands_samples_over_and_keeps_half_of_the_slots() -> None:
    gate = Gate()

    async def main() -> None:
        engine = FakeEngine(1, before=lambda images: gate(images) if images == [1] else None)
        async with connected(engine, slots=4) as pair:
            pair.scheduler._drift = DriftMonitor(engine, HEADS, pair.engine_metrics)
            for number in range(3):
                pair.client.sample(image(100 + number))
            assert sample(pair.worker_metrics.render(), "mae_drift_samples_total", outcome="dropped") == 1
            await pair.until(lambda: len(pair.client._free) == 4)
            await pair.until(lambda: sample(pair.engine_metrics.render(), MEASURED[0], outcome=MEASURED[1]) == 2)
            assert sample(pair.engine_metrics.render(), "mae_drift_loss_sum") == 100 + 101
            with pair.admit(1, 2, 3):
                await gate.wait_until_reached()
                pair.client.sample(image(100))
                assert sample(pair.worker_metrics.render(), "mae_drift_samples_total", outcome="dropped") == 2
                gate.opened.set()

    run(main())


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    engine = FakeEngine(not_a_number=13)
    settings = Settings(drift_sample=request.param)
    with TestClient(create_app(settings, lambda settings, progress: ServedModel(engine, HEADS))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


def post(client: TestClient, route: str, *greys: int) -> int:
    files = [("image", ("i", encoded(Image.new("L", (32, 32), grey)))) for grey in greys]
    return client.post(route, files=files).status_code


def counted(client: TestClient, name: str, **labels: str) -> float:
    return sample(client.get("/metrics").text, name, **labels)


@pytest.mark.parametrize("client", [1.0], indirect=True)
def test_every_route_samples_the_images_that_it_answers(client: TestClient) -> None:
    assert post(client, "/embed", 1, 2) == post(client, "/reconstruct", 3) == 200
    assert post(client, "/reconstruct?draws=4", 4) == post(client, "/explain?passes=4", 5, 6) == 200
    assert post(client, "/embed", 13) == 500, "an image of a failed request is no sample"
    end = time.monotonic() + 60
    while counted(client, MEASURED[0], outcome=MEASURED[1]) < 6:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert counted(client, "mae_drift_loss_count") == counted(client, "mae_drift_distance_count") == 6
    assert counted(client, "mae_drift_loss_sum") == 1 + 2 + 3 + 4 + 5 + 6
    assert counted(client, "mae_images_total") == 2 + 1 + 1 + 2
    assert counted(client, "mae_drift_samples_total") == 6


@pytest.mark.parametrize("client", [0.0], indirect=True)
def test_without_the_setting_nothing_is_measured(client: TestClient) -> None:
    for _ in range(20):
        assert post(client, "/embed", 1, 2) == 200
    assert counted(client, "mae_drift_samples_total") == 0


@pytest.mark.parametrize("client", [0.25], indirect=True)
def test_a_share_of_the_images_is_sampled(client: TestClient) -> None:
    for _ in range(8):
        assert post(client, "/embed", *range(20, 70)) == 200
    end = time.monotonic() + 60
    expected, deviation = 400 * 0.25, (400 * 0.25 * 0.75) ** 0.5
    while counted(client, "mae_drift_samples_total") < expected - 6 * deviation:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert counted(client, "mae_drift_samples_total") < expected + 6 * deviation
