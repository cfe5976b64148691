"""The searches of all workers, in the engine process, which has the index."""

from __future__ import annotations

import asyncio
import logging

from service.errors import ServiceError
from service.inference.searcher import Searcher
from service.workers.messages import NUMBER, Kind, pack_error, pack_neighbours, unpack_query
from service.workers.worker_connection import WorkerConnection

log = logging.getLogger(__name__)


class WorkerSearches:
    """Runs each search of a worker and sends back what it finds. Used on the event loop."""

    def __init__(self, searcher: Searcher) -> None:
        """Searches by `searcher`."""
        self.embedding = searcher.embedding
        self._searcher = searcher
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        """The searches that run or wait, by the index of the worker and the search's number."""

    def message_received(self, connection: WorkerConnection, kind: Kind, content: memoryview) -> None:
        """Handles a worker's messages about searches: SEARCH, DESCRIBE_INDEX or DROP_SEARCH."""
        (number,) = NUMBER.unpack_from(content)
        key = (connection.worker_index, number)
        if kind is Kind.DROP_SEARCH:
            if task := self._tasks.get(key):
                task.cancel()
            return
        search = self._answer(connection, number, kind, bytes(content[NUMBER.size :]))
        task = self._tasks[key] = asyncio.get_running_loop().create_task(search)
        task.add_done_callback(lambda task: self._forget(key, task))

    def drop_all(self, worker_index: int) -> None:
        """Drops the searches of a worker that is dead."""
        for (owner, _), task in self._tasks.items():
            if owner == worker_index:
                task.cancel()

    def close(self) -> None:
        """Drops all searches."""
        for task in self._tasks.values():
            task.cancel()

    def _forget(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:  # a new worker may have begun to count from 0 again
            del self._tasks[key]

    async def _answer(self, connection: WorkerConnection, number: int, kind: Kind, content: bytes) -> None:
        try:
            if kind is Kind.DESCRIBE_INDEX:
                answer = (await self._searcher.describe()).model_dump_json().encode()
            else:
                found = await self._searcher.search(unpack_query(content))
                answer = await asyncio.to_thread(pack_neighbours, found)
        except ServiceError as error:
            connection.send(Kind.SEARCH_FAILED, NUMBER.pack(number) + pack_error(error))
        except Exception as error:  # or the worker would wait until its deadline
            log.error("a search of worker %d has failed", connection.worker_index, exc_info=error)
            unexpected = ServiceError("unexpected error in a search: the server's log has the reason")
            connection.send(Kind.SEARCH_FAILED, NUMBER.pack(number) + pack_error(unexpected))
        else:
            connection.send(Kind.FOUND, NUMBER.pack(number) + answer)
