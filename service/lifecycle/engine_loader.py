"""Loads an engine, and the index if there is one, in a daemon thread, so that probes are answered meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError, ServedModel
from model.engines.settings import EngineSettings
from service.index.errors import ImageIndexError

T = TypeVar("T")
log = logging.getLogger(__name__)
BuildEngine = Callable[[EngineSettings, Callable[[str], None]], ServedModel]
"""Builds an engine, and reports each step: `model.engines.build.build`, or a stand-in."""


class EngineLoader(Generic[T]):
    """Loads what the service needs, and reports its progress and the outcome."""

    def __init__(
        self,
        settings: EngineSettings,
        load: Callable[[EngineSettings, Callable[[str], None]], T],
        on_progress: Callable[[str], None],
        on_loaded: Callable[[T], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Does not begin yet.

        Args:
            settings: of the engine.
            load: loads the engine and what goes with it, in the thread.
            on_progress: called in the thread with each step.
            on_loaded: called on the event loop with what `load` returns.
            on_failure: called on the event loop with the reason if `load` or `on_loaded` raises.
        """
        self._settings = settings
        self._load = load
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._on_failure = on_failure

    async def load(self) -> None:
        """Waits until the engine is loaded or has failed to load. Cancelling leaves the thread behind."""
        try:
            self._on_loaded(await self._load_in_thread())
        except ImageIndexError as error:
            self._on_failure(f"the index cannot be opened: {error}")
        except (WeightsError, EngineBuildError) as error:
            self._on_failure(f"the engine cannot be loaded: {error}")
        except Exception as error:
            log.critical("the engine cannot be loaded", exc_info=error)
            self._on_failure(f"the engine cannot be loaded: {error}")

    def _load_in_thread(self) -> asyncio.Future[T]:
        """Starts to load in a daemon thread: a process that is told to end does not wait for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def succeed(loaded: T) -> None:
            if not future.cancelled():
                future.set_result(loaded)

        def fail(error: Exception) -> None:
            if not future.cancelled():
                future.set_exception(error)

        def load() -> None:
            try:
                settle = partial(succeed, self._load(self._settings, self._on_progress))
            except Exception as error:
                settle = partial(fail, error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=load, name="load", daemon=True).start()
        return future
