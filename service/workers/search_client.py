"""The searcher of a worker: it sends queries to the engine process, which has the index."""

from __future__ import annotations

import asyncio
import itertools

from service.inference.searcher import IndexInfo, Neighbour, Query
from service.parameters import EmbedParameters
from service.workers.channel import Channel
from service.workers.messages import NUMBER, Kind, pack_query, unpack_error, unpack_neighbours


class SearchClient:
    """The `Searcher` of a worker. Used on the event loop."""

    def __init__(self, channel: Channel, embedding: EmbedParameters) -> None:
        """Sends queries over `channel`; `embedding` is how the images of the index were embedded."""
        self.embedding = embedding
        self._channel = channel
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        """The searches that are not answered yet, by number."""

    async def describe(self) -> IndexInfo:
        """See `Searcher.describe`."""
        return IndexInfo.model_validate_json(await self._ask(Kind.DESCRIBE_INDEX, b""))

    async def search(self, query: Query) -> list[list[Neighbour]]:
        """See `Searcher.search`. If the caller is cancelled, the engine process drops the search."""
        return unpack_neighbours(await self._ask(Kind.SEARCH, pack_query(query)))

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Handles the engine process's messages about searches: FOUND or SEARCH_FAILED."""
        answer = self._waiting.get(*NUMBER.unpack_from(content))
        if answer is None or answer.done():  # nobody waits for it any more
            return
        if kind is Kind.FOUND:
            answer.set_result(bytes(content[NUMBER.size :]))
        else:
            answer.set_exception(unpack_error(content[NUMBER.size :]))

    async def _ask(self, kind: Kind, content: bytes) -> bytes:
        """What FOUND holds.

        Raises:
            ServiceError: the search has failed.
        """
        number = next(self._numbers) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._channel.send(kind, NUMBER.pack(number) + content)
        try:
            return await answer
        except asyncio.CancelledError:
            self._channel.send(Kind.DROP_SEARCH, NUMBER.pack(number))
            raise
        finally:
            del self._waiting[number]
