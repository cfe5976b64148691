"""The process that has the engine: when it is ready, when it drains, when and with which code it ends."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from model.engines.base import ServedModel
from service.errors import Draining, ServiceError
from service.inference import watchdog
from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE, Budgets, LocalBudget
from service.lifecycle import engine_lifecycle
from service.lifecycle.engine_lifecycle import EngineLifecycle
from service.lifecycle.state import ServiceState
from service.metrics import Metrics
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.metrics import sample
from tests.support.queueing import ALL_FOUR, Gate, image, run
from tests.support.waiting import until


class StubScheduler:
    """Stands for the scheduler: records what the lifecycle does with it."""

    def __init__(self, engine: Any, *arguments: Any, drift: Any, tracer: Any) -> None:
        self.engine = engine
        self.lose = arguments[-1]
        self.calls: list[str] = []
        self.error: ServiceError | None = None

    def start(self) -> None:
        self.calls.append("start")

    def fail_all(self, error: ServiceError) -> None:
        self.error = error


class Process:
    """A lifecycle and everything around it."""

    def __init__(self, build: Any = lambda settings, report: ServedModel(FakeEngine()), **settings: Any) -> None:
        self.state, self.metrics = ServiceState(), Metrics()
        self.budgets = Budgets(LocalBudget(64_000_000), LocalBudget(), LocalBudget(9 * IMAGE), LocalBudget())
        self.opened: list[tuple[Any, str]] = []
        self.lifecycle = EngineLifecycle(
            Settings(**settings),
            build,
            self.state,
            self.metrics,
            self.budgets,
            self.budgets.images,
            lambda scheduler, heads: self.opened.append((scheduler, self.state.current)),
        )

    @property
    def scheduler(self) -> Any:
        return self.lifecycle.scheduler


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_lifecycle, "BatchScheduler", StubScheduler)
    monkeypatch.setattr(engine_lifecycle, "LOST_GRACE_S", 0.0)
    monkeypatch.setattr(engine_lifecycle, "QUIET_S", 0.0)


@contextlib.asynccontextmanager
async def ready(**settings: Any) -> AsyncIterator[Process]:
    process = Process(**settings)
    process.lifecycle.start()
    await until(lambda: process.state.current == "ready")
    yield process
    process.lifecycle.close()
    assert process.scheduler.calls == ["start"]


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_scheduler_is_open_before_the_state_is_ready() -> None:
    async def main() -> None:
        async with ready() as process:
            assert process.opened == [(process.scheduler, "loading")]
            assert sample(process.metrics.render(), "mae_ready") == 1
            assert sample(process.metrics.render(), "mae_lanes") == 1

    run(main())


def test_gauges_show_what_the_budgets_hold() -> None:
    process = Process(queue_images=9, max_inflight_mb=64)
    process.budgets.requests.take(3)
    process.budgets.bodies.take(1000)
    process.budgets.images.take(4 * IMAGE)
    text = process.metrics.render()
    assert sample(text, "mae_ready") == 0
    assert sample(text, "mae_admitted_images") == 4
    assert sample(text, "mae_inflight_requests") == 3 and sample(text, "mae_inflight_bytes") == 1000
    assert sample(text, "mae_queue_limit_images") == 9 and sample(text, "mae_inflight_limit_bytes") == 64e6


def test_an_engine_that_cannot_be_built_ends_the_process_with_1() -> None:
    def build(settings: Any, report: Any) -> Any:
        raise RuntimeError("out of memory, say")

    async def main() -> None:
        process = Process(build)
        process.lifecycle.start()
        await until(lambda: process.state.exit_code is not None)
        assert (process.state.exit_code, process.state.current) == (1, "lost")
        assert process.state.progress == "the engine cannot be loaded: out of memory, say"
        process.lifecycle.close()

    run(main())


def test_a_drain_waits_for_the_requests_that_were_accepted() -> None:
    async def main() -> None:
        async with ready() as process:
            process.budgets.requests.take(2)
            process.lifecycle.handle_signal(signal.SIGTERM)
            assert process.state.current == "draining" and sample(process.metrics.render(), "mae_ready") == 0
            process.budgets.requests.give(1)
            await some_turns()
            assert process.state.exit_code is None
            process.budgets.requests.give(1)
            await until(lambda: process.state.exit_code == 0)
            assert process.scheduler.error is None

    run(main())


def test_after_the_drain_timeout_the_rest_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with ready(drain_timeout_s=0) as process:
            process.budgets.requests.take(3)
            process.lifecycle.handle_signal(signal.SIGTERM)
            await until(lambda: process.state.exit_code == 0)
            assert isinstance(process.scheduler.error, Draining)

    run(main())
    assert "3 requests are cut off" in caplog.text


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_sigint_during_the_drain_ends_it(first: int) -> None:
    async def main() -> None:
        async with ready() as process:
            process.budgets.requests.take(1)
            process.lifecycle.handle_signal(first)
            process.lifecycle.handle_signal(signal.SIGTERM)
            assert process.state.exit_code is None
            process.lifecycle.handle_signal(signal.SIGINT)
            assert process.state.exit_code == 0

    run(main())


def test_a_lost_engine_is_shown_to_probes_before_the_process_ends_with_1() -> None:
    async def main() -> None:
        async with ready() as process:
            changes: list[tuple[str, int | None]] = []
            process.state.subscribe(lambda: changes.append((process.state.current, process.state.exit_code)))
            process.scheduler.lose("lane 0 has ended")
            await until(lambda: process.state.exit_code == 1)
            assert process.state.progress == "lane 0 has ended"
            assert changes == [("lost", None), ("lost", 1)]
            process.lifecycle.handle_signal(signal.SIGTERM)
            assert process.state.current == "lost"

    run(main())


def test_an_engine_that_hangs_is_lost(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engine_lifecycle, "BatchScheduler", BatchScheduler)
    monkeypatch.setattr(watchdog, "HANG_LEAST_S", 0.0)
    gate = Gate()

    async def main() -> None:
        process = Process(lambda settings, report: ServedModel(FakeEngine(before=gate)))
        process.lifecycle.start()
        await until(lambda: process.state.current == "ready")
        patches, visible_indices = image(1)[None], ALL_FOUR[None]
        lane = asyncio.create_task(asyncio.to_thread(process.scheduler.engine.embed, 0, patches, visible_indices))
        await gate.wait_until_reached()
        await until(lambda: process.state.exit_code == 1)
        assert process.state.progress.startswith("lane 0 hangs: a batch of 1 for embed")
        gate.opened.set()
        await lane
        process.lifecycle.close()
        process.scheduler.stop()

    run(main())
    assert caplog.text.count("lane 0 hangs") == 1


def test_an_engine_that_is_not_loaded_in_time_ends_the_process_and_the_step_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = threading.Event()

    def build(settings: Any, report: Any) -> ServedModel:
        report("compiling for ever")
        assert opened.wait(60)
        return ServedModel(FakeEngine())

    async def main() -> None:
        process = Process(build, load_timeout_s=0.01)
        process.lifecycle.start()
        await until(lambda: process.state.exit_code == 1)
        assert process.state.current == "lost"
        assert process.state.progress.startswith("this step of loading the engine has not ended after 0.01 s")
        opened.set()
        process.lifecycle.close()

    run(main())
    assert "(LOAD_TIMEOUT_S): compiling for ever" in caplog.text


def test_loading_is_not_watched_once_the_engine_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class StubHeartbeat:
        def __init__(self, watched: object, on_hang: Callable[[str], object]) -> None:
            self.watched, self.on_hang, self.beats = watched, on_hang, False

        def start(self) -> None:
            self.beats = True
            started.append(self)

        def stop(self) -> None:
            self.beats = False

    monkeypatch.setattr(engine_lifecycle, "Heartbeat", StubHeartbeat)

    async def main() -> None:
        async with ready() as process:
            loading, running = started
            assert isinstance(loading.watched, watchdog.LoadWatchdog) and not loading.beats
            assert isinstance(running.watched, watchdog.Watchdog) and running.beats
            loading.on_hang("it has found this while the engine became ready")
            await some_turns()
            assert process.state.current == "ready" and process.state.exit_code is None

    run(main())


def test_an_engine_that_is_loaded_during_a_drain_does_not_make_the_service_ready() -> None:
    async def main() -> None:
        process = Process()
        process.budgets.requests.take(1)
        process.lifecycle.start()
        process.lifecycle.handle_signal(signal.SIGTERM)
        await until(lambda: process.scheduler is not None)
        assert process.state.current == "draining"
        process.lifecycle.close()

    run(main())
