"""Searches run in threads: bounded, in time, and none of their failures ends more than their request."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.errors import DeadlinePassed, QueueFull, SearchFailed
from service.inference.index_searcher import THREADS, IndexSearcher
from service.inference.searcher import IndexInfo, Neighbour, Query
from service.metrics import Metrics
from service.parameters import EmbedParameters, SearchParameters
from tests.support.metrics import sample
from tests.support.queueing import run
from tests.support.waiting import until


class GatedIndex:
    """An index whose searches wait until `gate` is set."""

    embedding = EmbedParameters(whiten=True)
    rows = 5

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.searched: list[tuple[list[float], int, bool]] = []
        """The first number of each vector, k and whether pictures were asked for, of each search that ran."""
        self.threads: set[str] = set()
        """The names of the threads that searched."""
        self.error: Exception | None = None

    def describe(self) -> IndexInfo:
        self.rows += 1
        return IndexInfo(name="gated", space="space", rows=self.rows, exact=False, recall=0.9)

    def search(self, vectors: Any, k: int, thumbnails: bool) -> list[list[Neighbour]]:
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        self.searched.append((vectors[:, 0].tolist(), k, thumbnails))
        self.threads.add(threading.current_thread().name)
        return [[Neighbour(f"/a{row[0]:g}", "a", 0.9), Neighbour("/b", "b", 0.1)][:k] for row in vectors]


@contextlib.contextmanager
def searcher_of(index: GatedIndex, max_images: int = 64) -> Iterator[tuple[IndexSearcher, Metrics]]:
    metrics = Metrics()
    searcher = IndexSearcher(index, metrics, max_images)
    try:
        yield searcher, metrics
    finally:
        index.gate.set()
        searcher.close()


def query(number: float = 0, count: int = 1, deadline: float = math.inf, **parameters: Any) -> Query:
    return Query(np.full((count, 2), number, np.float32), SearchParameters(**parameters), deadline)


def test_the_event_loop_goes_on_while_a_thread_searches() -> None:
    async def main() -> None:
        index = GatedIndex()
        with searcher_of(index) as (searcher, metrics):
            searching = asyncio.ensure_future(searcher.search(query(7, 3)))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not searching.done() and sample(metrics.render(), "mae_searching_images") == 3
            index.gate.set()
            found = await searching
            assert [[one.file for one in image] for image in found] == [["/a7", "/b"]] * 3
            assert index.searched == [([7, 7, 7], 10, False)]
            assert all(name.startswith("search") for name in index.threads)
            text = metrics.render()
            assert sample(text, "mae_searching_images") == 0 and sample(text, "mae_index_rows") == 5
            assert sample(text, "mae_stage_duration_seconds_count", stage="search") == 1
            assert (await searcher.describe()).rows == 6
            assert sample(metrics.render(), "mae_index_rows") == 6

    run(main())


def test_dissimilar_neighbours_are_left_out() -> None:
    async def main() -> None:
        index = GatedIndex()
        index.gate.set()
        with searcher_of(index) as (searcher, _):
            for least, files in ((0.1, ["/a0", "/b"]), (0.11, ["/a0"]), (1.0, [])):
                [found] = await searcher.search(query(min_similarity=least))
                assert [one.file for one in found] == files

    run(main())


def test_too_many_searches_are_refused() -> None:
    async def main() -> None:
        index = GatedIndex()
        with searcher_of(index, max_images=4) as (searcher, _):
            first = asyncio.ensure_future(searcher.search(query(count=9)))  # alone it may be larger than the queue
            await asyncio.sleep(0)
            with pytest.raises(QueueFull) as refused:
                await searcher.search(query())
            assert refused.value.details == {"limit": 4} and refused.value.retry_after_s
            index.gate.set()
            assert len(await first) == 9
            assert len(await searcher.search(query(count=4))) == 4

    run(main())


def test_a_search_that_nobody_waits_for_any_more_does_not_begin() -> None:
    async def main() -> None:
        index = GatedIndex()
        with searcher_of(index) as (searcher, metrics):
            running = [asyncio.ensure_future(searcher.search(query(number))) for number in range(THREADS)]
            waiting = asyncio.ensure_future(searcher.search(query(100)))
            late = asyncio.ensure_future(searcher.search(query(200, deadline=time.monotonic() + 0.01)))
            await asyncio.sleep(0.02)
            waiting.cancel()
            await until(waiting.done)
            index.gate.set()
            await asyncio.gather(*running)
            with pytest.raises(DeadlinePassed):
                await late
            assert sorted(numbers for numbers, _, _ in index.searched) == [[number] for number in range(THREADS)]
            assert sample(metrics.render(), "mae_searching_images") == 0

    run(main())


def test_queries_that_wait_are_searched_together_and_answered_apart() -> None:
    async def main() -> None:
        index = GatedIndex()
        with searcher_of(index, 1000) as (searcher, metrics):
            running = [asyncio.ensure_future(searcher.search(query(number))) for number in range(THREADS)]
            await asyncio.sleep(0)
            waiting = [
                asyncio.ensure_future(searcher.search(one))
                for one in (
                    query(10, k=1),
                    query(11, 2, k=2, min_similarity=0.5),
                    query(12, k=7),
                    query(13, thumbnails=True),
                    query(14, 70, thumbnails=True),
                )
            ]
            await asyncio.sleep(0)
            index.gate.set()
            await asyncio.gather(*running)
            found = await asyncio.gather(*waiting)
            files = [[[one.file for one in image] for image in images] for images in found]
            assert files[:4] == [[["/a10"]], [["/a11"], ["/a11"]], [["/a12", "/b"]], [["/a13", "/b"]]]
            assert files[4] == [["/a14", "/b"]] * 70
            assert sorted(index.searched) == [  # the threads may end in any order
                *(([number], 10, False) for number in range(THREADS)),
                ([10, 11, 11, 12], 7, False),
                ([13], 10, True),
                ([14] * 70, 10, True),
            ]
            assert sample(metrics.render(), "mae_stage_duration_seconds_count", stage="search") == THREADS + 5

    run(main())


def test_a_failure_is_logged_and_told_without_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        index = GatedIndex()
        index.gate.set()
        with searcher_of(index) as (searcher, _):
            index.error = RuntimeError("/secret/photos.lance is damaged")
            with pytest.raises(SearchFailed) as failed:
                await searcher.search(query())
            assert "secret" not in failed.value.message
            index.error = None
            assert len(await searcher.search(query())) == 1

    run(main())
    assert "/secret/photos.lance is damaged" in caplog.text
