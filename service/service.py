"""The service behind the routes: its state, its limits, its metrics, and the pipeline to the engine."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from model.checkpoints.heads import Heads
from model.engines.base import EngineInfo
from model.engines.build import build
from service.errors import Draining, EngineLost, NotReady, ServiceError
from service.inference.batch_scheduler import BatchScheduler
from service.inference.cache import ResultCache
from service.inference.decode_memory import DecodeMemory
from service.inference.image_decoder import ImageDecoder
from service.inference.image_rate import ImageRate
from service.inference.limits import IMAGE, Budgets, LocalBudget, key_budgets
from service.inference.pipeline import Pipeline
from service.inference.served_name import apply_served_name
from service.lifecycle.engine_lifecycle import EngineLifecycle
from service.lifecycle.engine_loader import BuildEngine
from service.lifecycle.state import ServiceState, State
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing.spans import Tracer


class Service(ABC):
    """The service as the routes see it. `LocalService` has the engine in its own process, a `WorkerService` has not."""

    def __init__(self, settings: Settings, budgets: Budgets, tracer: Tracer | None) -> None:
        """Takes no work yet.

        Args:
            settings: of the service.
            budgets: the amounts that all requests share, in this process or in all workers.
            tracer: records the requests; None: they are not traced.
        """
        self.settings = settings
        self.budgets = budgets
        self.tracer = tracer
        self.metrics = Metrics()
        self.interrupts: set[Callable[[], object]] = set()
        """Called once, when the process is to end: each wakes a request that still waits for something."""
        self.on_memory_wanted: Callable[[], object] = lambda: None
        """Called when another process finds MAX_INFLIGHT_MB full: a slow body of this process should make room."""
        self._interrupted = False
        self._state = ServiceState()
        self._state.subscribe(self._interrupt_at_end)
        self._pipeline: Pipeline | None = None

    @property
    def state(self) -> State:
        """The state: the service takes new requests only while it is "ready"."""
        return self._state.current

    @property
    def progress(self) -> str:
        """The step of loading that runs, or the reason why the engine is lost, else empty; for probes."""
        return self._state.progress if self._state.current in ("loading", "lost") else ""

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process once it should end, else None."""
        return self._state.exit_code

    @property
    def end_error(self) -> ServiceError:
        """The error of a request that an interrupt has woken."""
        return EngineLost(self._state.progress) if self._state.current == "lost" else Draining.out_of_time()

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline to the engine, for a new request.

        Raises:
            NotReady, Draining, EngineLost: the service takes no new work.
        """
        if self._state.current == "draining":
            raise Draining("the server is shutting down")
        if self._state.current == "lost":
            raise EngineLost(self._state.progress)
        if self._pipeline is None:
            raise NotReady(f"the engine is not ready yet: {self._state.progress}")
        return self._pipeline

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every change of the state, in any thread."""
        self._state.subscribe(listener)

    @abstractmethod
    def want_memory(self) -> None:
        """Asks other processes for memory for bodies, where no slow body of this one could make room."""

    def _interrupt_at_end(self) -> None:
        if self.exit_code is None or self._interrupted:
            return
        self._interrupted = True
        for interrupt in list(self.interrupts):
            interrupt()

    def _image_decoder(self, info: EngineInfo) -> ImageDecoder:
        """The decoder of a pipeline, within the limits of the service."""
        return ImageDecoder(
            info.config,
            info.preprocessing,
            self.settings.max_pixels,
            DecodeMemory(self.budgets.decodes),
            self.metrics.ignored_profiles.inc,
        )

    def _result_cache(self) -> ResultCache | None:
        """The cache of a pipeline; None without CACHE_MB."""
        if not self.settings.cache_bytes:
            return None
        return ResultCache(self.settings.cache_bytes, self.budgets.cache, self.budgets.images, self.metrics)

    async def _close_tracer(self) -> None:
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    @abstractmethod
    def start(self) -> None:
        """Begins to load the engine or to wait for it; probes are answered meanwhile. Call this on the event loop."""

    @abstractmethod
    def exposition(self) -> bytes:
        """The metrics of the whole service in Prometheus' text format. This blocks: call it in a thread."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the threads and connections of the service."""


class LocalService(Service):
    """The service in a single process, which has the engine itself."""

    def __init__(self, settings: Settings, build_engine: BuildEngine = build, tracer: Tracer | None = None) -> None:
        """Nothing is loaded yet; `build_engine` builds the engine after `start`. `close` closes the tracer."""
        budgets = Budgets(
            bodies=LocalBudget(settings.max_inflight_bytes),
            requests=LocalBudget(),
            images=LocalBudget(settings.queue_images * IMAGE),
            decodes=LocalBudget(settings.max_decode_bytes),
            keys=key_budgets(
                settings,
                lambda index, limit: LocalBudget(limit),
                lambda index, per_s, burst: ImageRate(per_s, burst),
            ),
        )
        super().__init__(settings, budgets, tracer)
        self._lifecycle = EngineLifecycle(
            settings,
            build_engine,
            self._state,
            self.metrics,
            budgets,
            budgets.images,
            self._open,
            tracer,
            self._on_measured,
        )

    def start(self) -> None:
        """Begins to load the engine; probes are answered meanwhile."""
        self._lifecycle.start()

    def want_memory(self) -> None:
        """There is no other process."""

    def handle_signal(self, number: int) -> None:
        """Begins a drain, or ends it. Call this on the event loop."""
        self._lifecycle.handle_signal(number)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format. This asks the GPUs' driver: call it in a thread."""
        return self.metrics.render()

    async def close(self) -> None:
        """Ends the lanes and the threads that decode; a batch that runs longer than LAST_BATCH_S is left to itself."""
        self._lifecycle.close()
        if self._pipeline is not None:
            self._pipeline.close()
        self.metrics.close()
        await self._close_tracer()

    def _on_measured(self, info: EngineInfo) -> None:
        if self._pipeline is not None:
            self._pipeline.info = apply_served_name(info, self.settings.served_name)

    def _open(self, scheduler: BatchScheduler, heads: Heads) -> None:
        s = self.settings
        info = apply_served_name(scheduler.engine.info, s.served_name)
        self._pipeline = Pipeline(
            info,
            heads,
            self._image_decoder(info),
            scheduler,
            self.metrics,
            s.decode_threads,
            s.drift_sample,
            self._result_cache(),
            self._lifecycle.searcher,
        )
