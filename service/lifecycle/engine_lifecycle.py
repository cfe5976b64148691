"""The life of the process that has the engine: it loads, serves, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from model.checkpoints.heads import Heads
from model.engines.base import CurveMeasurement, EngineInfo, ServedModel
from model.engines.settings import EngineSettings
from service.errors import Draining
from service.inference.batch_scheduler import BatchScheduler
from service.inference.drift import DriftMonitor
from service.inference.index_searcher import Index, IndexSearcher
from service.inference.limits import IMAGE, Budget, Budgets
from service.inference.watchdog import Heartbeat, LoadWatchdog, Watchdog, WatchedEngine, WatchedMeasurement
from service.lifecycle.background import BackgroundTasks
from service.lifecycle.engine_loader import BuildEngine, EngineLoader
from service.lifecycle.state import ServiceState
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing.spans import Tracer

log = logging.getLogger(__name__)
# How long probes can read the reason why the engine is lost before the process ends.
LOST_GRACE_S = 2.0
# How long the server still answers 503 after the last accepted request, to clients with open connections.
QUIET_S = 0.25
POLL_S = 0.02


class EngineLifecycle:
    """Loads the engine and starts its scheduler; ends the process after a drain, or when the engine is lost."""

    def __init__(
        self,
        settings: Settings,
        build_engine: BuildEngine,
        state: ServiceState,
        metrics: Metrics,
        budgets: Budgets,
        queue: Budget,
        on_open: Callable[[BatchScheduler, Heads], None],
        tracer: Tracer | None = None,
        on_measured: Callable[[EngineInfo], object] = lambda info: None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            settings: of the service.
            build_engine: builds the engine.
            state: of the service; this object changes it.
            metrics: of this process; its gauges are registered here.
            budgets: of the whole service; a drain waits until no request is left in them.
            queue: budget of the images in the scheduler's queue.
            on_open: called with the started scheduler and the model's heads, before the state is "ready". The creator
                of this object stops the scheduler in the end.
            tracer: records the batches; None: they are not traced.
            on_measured: called with the description of the engine when the measurement of its batches has ended, or has
                failed.
        """
        self.scheduler: BatchScheduler | None = None
        """The scheduler of the engine; None until the engine is loaded."""
        self.heads = Heads()
        """The classification head and whitening of the model; none until the engine is loaded."""
        self.searcher: IndexSearcher | None = None
        """Searches the index; None until it is opened, and without INDEX."""
        self._settings = settings
        self._state = state
        self._metrics = metrics
        self._requests = budgets.requests
        self._queue = queue
        self._on_open = on_open
        self._tracer = tracer
        self._on_measured = on_measured
        self._heartbeat: Heartbeat | None = None
        """Beats for the watchdog of what runs: loading first, then the engine; None before `start`."""
        self._created = time.monotonic()
        self._tasks = BackgroundTasks(state.fail)
        self._build_engine = build_engine
        self._loader = EngineLoader(settings.engine, self._load, state.report, self._open, state.fail)
        metrics.read_at_scrape(metrics.ready, lambda: state.current == "ready")
        metrics.read_at_scrape(metrics.inflight_requests, lambda: budgets.requests.used)
        metrics.read_at_scrape(metrics.inflight_bytes, lambda: budgets.bodies.used)
        metrics.read_at_scrape(metrics.admitted_images, lambda: budgets.images.used / IMAGE)
        metrics.read_at_scrape(metrics.cache_bytes, lambda: budgets.cache.used)
        metrics.describe_limits(settings.queue_images, settings.max_inflight_bytes)

    def start(self) -> None:
        """Begins to load the engine. Call this on the event loop."""
        loop = asyncio.get_running_loop()
        watchdog = LoadWatchdog(self._settings.load_timeout_s, lambda: self._state.progress)
        self._heartbeat = Heartbeat(watchdog, lambda reason: loop.call_soon_threadsafe(self._on_load_timeout, reason))
        self._heartbeat.start()
        self._tasks.start(self._loader.load())

    def handle_signal(self, number: int) -> None:
        """SIGTERM and SIGINT begin a drain; SIGINT during a drain ends the process. Call this on the event loop."""
        if number == signal.SIGINT and self._state.current == "draining":
            self._state.exit(0)
        elif self._state.current in ("loading", "ready"):
            log.info("draining: %d requests to finish", self._requests.used)
            self._state.change("draining")
            self._tasks.start(self._drain())

    def close(self) -> None:
        """Ends loading, draining, watching and searching."""
        self._tasks.cancel()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self.searcher is not None:
            self.searcher.close()

    def _load(self, settings: EngineSettings, progress: Callable[[str], None]) -> tuple[ServedModel, Index | None]:
        """The engine, and the index that is searched by its vectors. This blocks: it runs in a thread.

        Raises:
            WeightsError, EngineBuildError: the engine cannot be built.
            ImageIndexError: the index cannot be opened.
        """
        served = self._build_engine(settings, progress)
        if self._settings.index is None:
            return served, None
        from service.lifecycle.served_index import ServedIndex  # lazily: most services have no index

        progress(f"opening the index {self._settings.index.name}")  # without folders: probes show this to everybody
        return served, ServedIndex(self._settings.index, served.info)

    def _open(self, loaded: tuple[ServedModel, Index | None]) -> None:
        """Starts the scheduler of the engine, and takes requests from now on."""
        served, index = loaded
        info, s = served.info, self._settings
        watchdog = Watchdog(served.image_seconds, self._metrics.slow_batches.inc)
        engine = WatchedEngine(served.engine, watchdog)
        drift = DriftMonitor(engine, served.heads, self._metrics) if s.drift_sample else None
        scheduler = BatchScheduler(
            engine,
            self._metrics,
            self._queue,
            s.max_delay_ms / 1000,
            self._on_engine_lost,
            drift=drift,
            tracer=self._tracer,
        )
        scheduler.start()
        self.scheduler, self.heads = scheduler, served.heads
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._heartbeat = Heartbeat(watchdog, scheduler.lose)
        self._heartbeat.start()
        self.searcher = None if index is None else IndexSearcher(index, self._metrics, s.queue_images)
        self._on_open(scheduler, served.heads)
        self._metrics.describe_engine(info)
        self._state.change("ready" if self._state.current == "loading" else self._state.current)
        log.info(
            "ready after %.1f s: %s by %s %s on %s, %d lanes, batches of %d, parity %s",
            time.monotonic() - self._created,
            info.model_id,
            info.backend,
            info.precision,
            info.device,
            info.lanes,
            info.preferred_batch,
            info.parity,
        )
        if served.measurement is not None:
            measurement = WatchedMeasurement(served.measurement, watchdog)
            threading.Thread(
                target=self._measure, args=(measurement, scheduler), name="prepare-measurement", daemon=True
            ).start()

    def _measure(self, measurement: CurveMeasurement, scheduler: BatchScheduler) -> None:
        """Has the seconds of batches measured while the engine has nothing else to do. Runs in a thread."""
        try:
            measurement.prepare()
        except Exception:  # the engine serves on without what could not be prepared
            log.exception("the seconds of batches are not measured")
            measurement.abandon()
            return
        scheduler.measure(measurement, lambda: self._end_measurement(scheduler.engine.info))

    def _end_measurement(self, info: EngineInfo) -> None:
        log.info("the measurement has ended: batches of up to %d, joined lane: %s", info.preferred_batch, info.joined)
        self._on_measured(info)

    def _on_load_timeout(self, reason: str) -> None:
        if self.scheduler is None:  # or else the engine was loaded at the last moment
            self._state.fail(reason)

    def _on_engine_lost(self, reason: str) -> None:
        self._tasks.start(self._end_after_grace(reason))

    async def _end_after_grace(self, reason: str) -> None:
        self._state.change("lost", reason)
        log.critical("the engine is lost: %s; ending in %g s", reason, LOST_GRACE_S)
        await asyncio.sleep(LOST_GRACE_S)
        self._state.exit(1)

    async def _drain(self) -> None:
        await wait_until_quiet(self._requests, self._settings.drain_timeout_s)
        if unanswered := self._requests.used:
            log.error("DRAIN_TIMEOUT_S is over: %d requests are cut off", unanswered)
            if self.scheduler is not None:
                self.scheduler.fail_all(Draining.out_of_time())
        self._state.exit(0)


async def wait_until_quiet(requests: Budget, timeout_s: float) -> None:
    """Waits until no request has been in flight for QUIET_S, or `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    quiet_since = time.monotonic()
    while (now := time.monotonic()) < deadline:
        if requests.used:  # checked before the time: a busy event loop may have slept longer than QUIET_S
            quiet_since = now
        elif now - quiet_since >= QUIET_S:
            return
        await asyncio.sleep(POLL_S)
