"""The process that has the index searches it in threads, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from model.arrays import Floats
from service.errors import DeadlinePassed, QueueFull, SearchFailed, ServiceError
from service.inference.scheduler import copy_error
from service.inference.searcher import IndexInfo, Neighbour, Query
from service.metrics import Metrics
from service.parameters import EmbedParameters, SearchParameters

log = logging.getLogger(__name__)
T = TypeVar("T")
THREADS = 2
"""Searches that run at the same time; each may use several CPUs by itself."""
BATCH = 64
"""Images that are searched together; a request with more of them is searched alone."""


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
    """The `Searcher` of the process that has the index: a queue of queries, and a few threads.

    Queries that wait while all threads search are searched together: one search of several vectors costs little more
    than one of a single vector.
    """

    def __init__(self, index: Index, metrics: Metrics, max_images: int) -> None:
        """For one index; further queries are refused while as many as `max_images` images wait for their neighbours."""
        self.embedding = index.embedding
        self._index = index
        self._metrics = metrics
        self._max_images = max_images
        self._images = 0
        """Number of images whose neighbours are searched, or wait for that."""
        self._waiting: deque[_Waiting] = deque()
        self._searches = 0
        """Number of searches that run."""
        self._tasks: set[asyncio.Task[None]] = set()
        """The tasks of the searches that run: the event loop alone would not keep them."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="search")
        self._duration = metrics.stage_duration.labels("search")
        metrics.index_rows.set(index.rows)
        metrics.read_at_scrape(metrics.searching_images, lambda: self._images)

    async def describe(self) -> IndexInfo:
        """See `Searcher.describe`."""
        return await self._run(self._describe)

    async def search(self, query: Query) -> list[list[Neighbour]]:
        """See `Searcher.search`. If the caller is cancelled, a query that waits is dropped."""
        count = len(query.vectors)
        if self._images and self._images + count > self._max_images:
            raise QueueFull(
                f"{self._images} images wait for a search and {count} more are too many (QUEUE_IMAGES)",
                limit=self._max_images,
            )
        self._images += count
        waiting = _Waiting(query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            self._start_searches()
            return await waiting.found
        finally:
            self._images -= count

    def close(self) -> None:
        """Drops the queries that wait; a search that runs is left to itself."""
        for waiting in self._waiting:
            waiting.found.cancel()
        self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_searches(self) -> None:
        """Gives each thread that is free the queries that wait."""
        while self._searches < THREADS and (batch := self._next_batch()):
            self._searches += 1
            task = asyncio.get_running_loop().create_task(self._search_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest query that somebody waits for, and as many of the next ones as may be searched with it."""
        batch: list[_Waiting] = []
        count = 0
        while self._waiting:
            waiting = self._waiting[0]
            if not waiting.found.done() and time.monotonic() < waiting.query.deadline:
                query = waiting.query
                count += len(query.vectors)
                if batch and (count > BATCH or query.parameters.thumbnails != batch[0].query.parameters.thumbnails):
                    break
                batch.append(waiting)
            elif not waiting.found.done():
                waiting.found.set_exception(DeadlinePassed("the search did not begin in time"))
            self._waiting.popleft()
        return batch

    async def _search_batch(self, batch: list[_Waiting]) -> None:
        """Searches for the queries of a batch together, and hands each what is found for it."""
        try:
            found = await self._run(lambda: self._search([waiting.query for waiting in batch]))
        except ServiceError as error:
            for waiting in batch:
                if not waiting.found.done():
                    waiting.found.set_exception(copy_error(error))
        else:
            for waiting, neighbours in zip(batch, found, strict=True):
                if not waiting.found.done():
                    waiting.found.set_result(neighbours)
        finally:
            self._searches -= 1
            self._start_searches()

    async def _run(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread.

        Raises:
            SearchFailed: `work` has raised something unforeseen, which is logged.
        """
        try:
            return await asyncio.wrap_future(self._threads.submit(work))
        except Exception as error:
            log.error("the index cannot be read", exc_info=error)
            raise SearchFailed("the index cannot be read: the server's log has the reason") from error

    def _describe(self) -> IndexInfo:
        description = self._index.describe()
        self._metrics.index_rows.set(description.rows)
        return description

    def _search(self, queries: Sequence[Query]) -> list[list[list[Neighbour]]]:
        """The neighbours of each vector of each query."""
        start = time.monotonic()
        vectors = np.concatenate([query.vectors for query in queries])
        k = max(query.parameters.k for query in queries)
        found = iter(self._index.search(vectors, k, queries[0].parameters.thumbnails))
        seconds = time.monotonic() - start
        self._metrics.index_rows.set(self._index.rows)
        for _ in queries:
            self._duration.observe(seconds)
        return [[_select(next(found), query.parameters) for _ in query.vectors] for query in queries]


@dataclass(frozen=True)
class _Waiting:
    """A query, and where its neighbours go."""

    query: Query
    found: asyncio.Future[list[list[Neighbour]]]


def _select(neighbours: Sequence[Neighbour], parameters: SearchParameters) -> list[Neighbour]:
    """Those of the neighbours that a query asks for."""
    least = parameters.min_similarity
    return [one for one in neighbours[: parameters.k] if least is None or one.similarity >= least]
