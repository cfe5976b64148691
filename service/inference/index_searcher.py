"""The process that has the index searches it in threads, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from model.arrays import Floats
from service.errors import DeadlinePassed, QueueFull, SearchFailed, ServiceError
from service.inference.searcher import IndexInfo, Neighbour, Query
from service.metrics import Metrics
from service.parameters import EmbedParameters

log = logging.getLogger(__name__)
T = TypeVar("T")
THREADS = 2
"""Searches that run at the same time; each may use several CPUs by itself."""


class Index(Protocol):
    """What is searched. Every call blocks, and sees the newest version; several threads may call at the same time."""

    embedding: EmbedParameters
    """How the images of the index were embedded."""
    rows: int
    """Number of images in the version that was seen last."""

    def describe(self) -> IndexInfo:
        """The index as it is now."""

    def search(self, vectors: Floats, k: int, thumbnails: bool) -> Sequence[list[Neighbour]]:
        """The `k` nearest images of each vector, float32 [n, D'], the nearest first."""


class IndexSearcher:
    """The `Searcher` of the process that has the index: a queue of searches, and a few threads."""

    def __init__(self, index: Index, metrics: Metrics, max_images: int) -> None:
        """For one index; further searches are refused while as many as `max_images` images wait for theirs."""
        self.embedding = index.embedding
        self._index = index
        self._metrics = metrics
        self._max_images = max_images
        self._images = 0
        """Number of images whose searches run or wait."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._duration = metrics.stage_duration.labels("search")
        metrics.index_rows.set(index.rows)
        metrics.read_at_scrape(metrics.searching_images, lambda: self._images)

    async def describe(self) -> IndexInfo:
        """See `Searcher.describe`."""
        return await self._run(self._describe)

    async def search(self, query: Query) -> list[list[Neighbour]]:
        """See `Searcher.search`. If the caller is cancelled, a search that waits is dropped."""
        count = len(query.vectors)
        if self._images and self._images + count > self._max_images:
            raise QueueFull(
                f"{self._images} images wait for a search and {count} more are too many", limit=self._max_images
            )
        self._images += count
        try:
            return await self._run(lambda: self._search(query))
        finally:
            self._images -= count

    def close(self) -> None:
        """Drops the searches that wait; one that runs is left to itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread.

        Raises:
            SearchFailed: `work` has raised something unforeseen, which is logged.
        """
        try:
            return await asyncio.wrap_future(self._threads.submit(work))
        except ServiceError:
            raise
        except Exception as error:
            log.error("the index cannot be read", exc_info=error)
            raise SearchFailed("the index cannot be read: the server's log has the reason") from error

    def _describe(self) -> IndexInfo:
        description = self._index.describe()
        self._metrics.index_rows.set(description.rows)
        return description

    def _search(self, query: Query) -> list[list[Neighbour]]:
        start = time.monotonic()
        if start >= query.deadline:
            raise DeadlinePassed("the search did not begin in time")
        wanted, least = query.parameters, query.parameters.min_similarity
        found = self._index.search(query.vectors, wanted.k, wanted.thumbnails)
        self._duration.observe(time.monotonic() - start)
        self._metrics.index_rows.set(self._index.rows)
        if least is None:
            return list(found)
        return [[neighbour for neighbour in image if neighbour.similarity >= least] for image in found]
