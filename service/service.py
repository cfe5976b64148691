"""The service's life: loading, ready, draining, lost."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Literal

from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError, ServedModel
from model.engines.build import build
from model.engines.settings import EngineSettings
from service.errors import Draining, EngineLost, NotReady, Unauthorized
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import Budgets, LocalBudget
from service.inference.pipeline import Pipeline
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)
State = Literal["loading", "ready", "draining", "lost"]
BuildEngine = Callable[[EngineSettings, Callable[[str], None]], ServedModel]
# How long probes can read why an engine is lost before the process ends.
LOST_GRACE_S = 2.0
# How long the server still answers 503 after the last accepted request, so that clients on open connections hear of it.
QUIET_S = 0.25


class Service:
    """What the routes work with, from the first probe to the last answer."""

    def __init__(self, settings: Settings, build_engine: BuildEngine = build, budgets: Budgets | None = None) -> None:
        """Nothing is loaded yet.

        Args:
            settings: of the service.
            build_engine: `model.engines.build.build`, or stands in for it.
            budgets: what this process shares with others; without any it is alone.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.state: State = "loading"
        self.progress = "starting"
        self.exit_code = 0
        self.budgets = budgets or Budgets(LocalBudget(settings.max_inflight_bytes), LocalBudget())
        self.on_exit: Callable[[], None] = lambda: None
        """Called when the process should end, with `exit_code` set."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `state` or `progress` is another, in whatever thread."""
        self._build_engine = build_engine
        self._pipeline: Pipeline | None = None
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics.read_at_scrape(self.metrics.ready, lambda: self.state == "ready")
        self.metrics.read_at_scrape(self.metrics.inflight_requests, lambda: self.budgets.requests.used)
        self.metrics.read_at_scrape(self.metrics.inflight_bytes, lambda: self.budgets.bodies.used)
        self.metrics.describe_limits(settings.queue_images, settings.max_inflight_bytes)

    @property
    def pipeline(self) -> Pipeline:
        """The way to the engine, for a request that was admitted.

        Raises:
            NotReady, Draining, EngineLost: no new work is taken, and why.
        """
        if self.state == "draining":
            raise Draining("the server is shutting down")
        if self.state == "lost":
            raise EngineLost(self.progress)
        if self._pipeline is None:
            raise NotReady(f"the engine is not ready yet: {self.progress}")
        return self._pipeline

    def start(self) -> None:
        """Begins to load the engine; probes are answered meanwhile."""
        self._begin(self._load())

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format. Call it in a thread."""
        return self.metrics.render()

    def check_key(self, authorization: str, api_key: str) -> None:
        """Compares `Authorization: Bearer KEY` or `X-API-Key: KEY` with the keys that there are.

        Raises:
            Unauthorized: none of them.
        """
        if not self.settings.api_keys:
            return
        given = (api_key or authorization.removeprefix("Bearer ")).encode()
        if not any([hmac.compare_digest(given, key.encode()) for key in self.settings.api_keys]):
            raise Unauthorized("a valid key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")

    def terminate(self) -> None:
        """SIGTERM: take no new work, finish what was accepted, end. Call on the event loop."""
        if self.state in ("ready", "loading"):
            log.info("draining: %d requests to finish", self.budgets.requests.used)
            self._become("draining")
            self._begin(self._drain())

    async def close(self) -> None:
        """Ends the lanes and the decode pool; a batch that is still running gets a moment, and is left."""
        for task in self._tasks:
            task.cancel()
        if self._pipeline is not None:
            self._pipeline.batcher.stop()
            self._pipeline.decoder.close()
        self.metrics.close()

    def cut_off(self) -> None:
        """The drain is over: answers whatever was accepted and is not through."""
        if self._pipeline is not None:
            self._pipeline.batcher.fail_all(Draining("the server is shutting down, and the time to finish is over"))

    async def _load(self) -> None:
        try:
            self._open(await self._in_thread(lambda: self._build_engine(self.settings.engine, self._say)))
        except (WeightsError, EngineBuildError) as error:
            self.end(f"the engine cannot be loaded: {error}")
        except Exception as error:
            log.critical("the engine cannot be loaded", exc_info=error)
            self.end(f"the engine cannot be loaded: {error}")

    def _open(self, served: ServedModel) -> None:
        """Takes work for the model from now on."""
        s, info, engine = self.settings, served.info, served.engine
        decoder = ImageDecoder(info.config, info.preprocessing, s.max_pixels, s.decode_threads)
        batcher = BatchScheduler(engine, self.metrics, self._queue_images(), s.max_delay_ms / 1000, self._engine_lost)
        batcher.start()
        self._pipeline = Pipeline(info, served.heads, decoder, batcher, self.metrics)
        self.metrics.describe_engine(info)
        self._become("ready" if self.state == "loading" else self.state)
        log.info(
            "ready after %.1f s: %s by %s %s on %s, %d lanes, batches of %d, parity %s",
            time.monotonic() - self._started,
            info.model_id,
            info.backend,
            info.precision,
            info.device,
            info.lanes,
            info.preferred_batch,
            info.parity,
        )

    @staticmethod
    def _in_thread(work: Callable[[], ServedModel]) -> asyncio.Future[ServedModel]:
        """Runs `work` in a daemon thread, for which nothing waits when the process is told to end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ServedModel] = loop.create_future()

        def settle(engine: ServedModel | None, error: Exception | None) -> None:
            if not future.cancelled():
                future.set_exception(error) if error else future.set_result(engine)  # type: ignore[arg-type]

        def run() -> None:
            try:
                engine, failure = work(), None
            except Exception as error:
                engine, failure = None, error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, engine, failure)

        threading.Thread(target=run, name="load", daemon=True).start()
        return future

    def _queue_images(self) -> int:
        """How many images the queue may hold."""
        return self.settings.queue_images

    def _become(self, state: State, progress: str | None = None) -> None:
        self.state = state
        self.progress = self.progress if progress is None else progress
        self.on_change()

    def _say(self, progress: str) -> None:
        self.progress = progress
        self.on_change()
        log.info(progress)

    def _engine_lost(self, reason: str) -> None:
        self._begin(self._end_soon(reason))

    async def _end_soon(self, reason: str) -> None:
        self._become("lost", reason)
        log.critical("the engine is lost: %s; ending in %g s", reason, LOST_GRACE_S)
        await asyncio.sleep(LOST_GRACE_S)
        self.end(reason)

    def end(self, reason: str) -> None:
        """Ends the process with 1, and why."""
        log.critical(reason)
        self.exit_code = 1
        self._become("lost", reason)
        self.on_exit()

    async def _drain(self) -> None:
        deadline = time.monotonic() + self.settings.drain_timeout_s
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < deadline and now - quiet_since < QUIET_S:
            if self.budgets.requests.used:
                quiet_since = now
            await asyncio.sleep(0.02)
        if left := self.budgets.requests.used:
            log.error("DRAIN_TIMEOUT_S is over: %d requests are cut off", left)
            self.cut_off()
        self.on_exit()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("what the service does beside requests has failed", exc_info=error)
            self.end(f"unforeseen: {error}")
