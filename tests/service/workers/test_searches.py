"""A worker's searches: over a real channel to the process that has the index."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest

from service.errors import DeadlinePassed, SearchFailed, ServiceError
from service.inference.searcher import IndexInfo, Neighbour, Query
from service.parameters import EmbedParameters, SearchParameters
from service.workers.channel import Channel
from service.workers.messages import Kind
from service.workers.search_client import SearchClient
from service.workers.shared_counters import SharedCounters
from service.workers.worker_connection import WorkerConnection
from service.workers.worker_searches import WorkerSearches
from tests.support.queueing import run
from tests.support.waiting import until

INFO = IndexInfo(name="photos", space="space", rows=3, exact=False, recall=0.96)


class StubSearcher:
    """Finds the numbers of a query as files, once `gate` is set, or fails."""

    embedding = EmbedParameters()

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.queries: list[Query] = []
        self.dropped = 0
        self.error: Exception | None = None

    async def describe(self) -> IndexInfo:
        if self.error is not None:
            raise self.error
        return INFO

    async def search(self, query: Query) -> list[list[Neighbour]]:
        self.queries.append(query)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        if self.error is not None:
            raise self.error
        return [[Neighbour(f"/{number:g}", f"{number:g}", 0.5, b"jpeg") for number in row] for row in query.vectors]


class WorkerEnd(Channel):
    """Passes messages about searches to the client."""

    client: SearchClient

    def message_received(self, kind: Kind, content: memoryview) -> None:
        self.client.message_received(kind, content)


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[SearchClient, StubSearcher, WorkerSearches]]:
    counters, fd = SharedCounters.create(1), os.memfd_create("slots")
    engine_end, worker_end = socket.socketpair()
    searcher, worker = StubSearcher(), WorkerEnd()
    searches = WorkerSearches(searcher)
    connection = WorkerConnection(0, counters, fd, searches.message_received)
    worker.client = SearchClient(worker, searches.embedding)
    await connection.connect(engine_end)
    await worker.connect(worker_end)
    try:
        yield worker.client, searcher, searches
    finally:
        searches.close()
        worker.close()
        connection.close()
        await connection.disconnected.wait()
        counters.close()
        os.close(fd)


def query(*numbers: float) -> Query:
    return Query(np.array([numbers], np.float32), SearchParameters(k=3, thumbnails=True), 12.5)


def test_a_worker_gets_what_the_engine_process_finds() -> None:
    async def main() -> None:
        async with connected() as (client, searcher, _):
            first, second = (asyncio.ensure_future(client.search(query(*numbers))) for numbers in ((1, 2), (3,)))
            await until(lambda: len(searcher.queries) == 2)
            assert searcher.queries[0].parameters == SearchParameters(k=3, thumbnails=True)
            assert searcher.queries[0].deadline == 12.5
            searcher.gate.set()
            assert await first == [[Neighbour("/1", "1", 0.5, b"jpeg"), Neighbour("/2", "2", 0.5, b"jpeg")]]
            assert await second == [[Neighbour("/3", "3", 0.5, b"jpeg")]]
            assert await client.describe() == INFO

    run(main())


@pytest.mark.parametrize("error_class", [SearchFailed, DeadlinePassed])
def test_an_error_is_that_of_the_engine_process(error_class: type[ServiceError]) -> None:
    async def main() -> None:
        async with connected() as (client, searcher, _):
            searcher.gate.set()
            searcher.error = error_class("why")
            for asking in (client.search(query(1)), client.describe()):
                with pytest.raises(error_class, match="why"):
                    await asking
            searcher.error = None
            assert len(await client.search(query(1))) == 1

    run(main())


def test_an_unexpected_error_is_answered_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connected() as (client, searcher, _):
            searcher.gate.set()
            searcher.error = ZeroDivisionError("a mistake of ours")
            for asking in (client.search(query(1)), client.describe()):
                with pytest.raises(ServiceError, match="unexpected error in a search") as refusal:
                    await asking
                assert (refusal.value.status, refusal.value.code) == (500, "internal_error")
                assert "mistake" not in refusal.value.message
            searcher.error = None
            assert len(await client.search(query(1))) == 1

    run(main())
    assert "a search of worker 0 has failed" in caplog.text and "a mistake of ours" in caplog.text


def test_a_search_is_dropped_when_nobody_waits_for_it() -> None:
    async def main() -> None:
        async with connected() as (client, searcher, searches):
            searching = asyncio.ensure_future(client.search(query(1)))
            await until(lambda: searcher.queries)
            searching.cancel()
            await until(lambda: searcher.dropped == 1)
            others = [asyncio.ensure_future(client.search(query(number))) for number in (2, 3)]
            await until(lambda: len(searcher.queries) == 3)
            searches.drop_all(1)  # another worker is dead
            assert await client.describe() == INFO
            assert searcher.dropped == 1
            searches.drop_all(0)
            await until(lambda: searcher.dropped == 3)
            for other in others:
                other.cancel()

    run(main())
