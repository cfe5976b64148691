"""The cache of the engine's results, for images that are sent again: CACHE_MB.

A result is decided by the bytes of the image, the operation, the visible patches and the engine. A cache belongs to one
engine, so weights, precision and preprocessing need no place in its keys. What comes after the engine (pool, whitening,
length, pictures) is computed for every answer, so requests that differ in it alone share a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from numpy.typing import NDArray

from service.inference.limits import Budget
from service.metrics import Metrics

ENTRY_BYTES = 500
"""Memory of an entry beside the data of its arrays: its key, its place in the order, and objects around the data."""
LARGE = 250_000
"""Bytes of images above which their keys are computed in the pool: it would block the event loop for too long."""
Arrays = tuple[NDArray[Any], ...]
"""The result of one image, as it is stored."""


class ResultCache:
    """Results by key, up to a number of bytes; the one that was used longest ago goes first. Used on the event loop."""

    def __init__(self, limit: int, used: Budget, queue: Budget, metrics: Metrics) -> None:
        """The cache is empty.

        Args:
            limit: bytes of all entries in this process.
            used: counts these bytes for the whole service.
            queue: budget of the images in the queue: a request that it could never hold is refused, cached or not.
            metrics: counts hits, misses and evictions.
        """
        self.queue = queue
        self._limit = limit
        self._used = used
        self._metrics = metrics
        self._entries: OrderedDict[bytes, Arrays] = OrderedDict()
        self._bytes = 0

    async def look_up(
        self,
        context: Sequence[bytes],
        images: dict[int, bytes],
        run_in_pool: Callable[..., Awaitable[dict[int, bytes]]],
    ) -> CachedResults:
        """Looks up the encoded `images` of one request, by index; `context` is that of `compute_keys`."""
        keys = (await self.prepare(context, images, run_in_pool)).keys
        known = {index: found for index, key in keys.items() if (found := self.get(key)) is not None}
        return CachedResults(known, {index: key for index, key in keys.items() if index not in known}, self)

    async def prepare(
        self,
        context: Sequence[bytes],
        images: dict[int, bytes],
        run_in_pool: Callable[..., Awaitable[dict[int, bytes]]],
    ) -> CachedResults:
        """Makes the keys under which results are to be stored; nothing is looked up, so nothing counts as a miss."""
        large = sum(map(len, images.values())) > LARGE
        keys = await run_in_pool(compute_keys, context, images) if large else compute_keys(context, images)
        return CachedResults(keys=keys, cache=self)

    def get(self, key: bytes) -> Arrays | None:
        """The result of `key`, which then goes last."""
        found = self._entries.get(key)
        if found is None:
            self._metrics.cache_misses.inc()
            return None
        self._entries.move_to_end(key)
        self._metrics.cache_hits.inc()
        return found

    def put(self, key: bytes, result: Arrays) -> None:
        """Stores a result, and drops others until there is room; one that is larger than the cache is not stored."""
        size = _size(result)
        if size > self._limit or key in self._entries:
            return
        while self._bytes + size > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _size(dropped)
            self._used.give(_size(dropped))
            self._metrics.cache_evictions.inc()
        # The engine's arrays are parts of a batch, which would stay in memory with them.
        self._entries[key] = tuple(array if array.base is None else array.copy() for array in result)
        self._bytes += size
        self._used.take(size)


@dataclass(frozen=True)
class CachedResults:
    """The results of one request that are in the cache, and the keys under which the others are to be stored.

    A request that does not use the cache has neither.
    """

    known: dict[int, Arrays] = field(default_factory=dict)
    """By the index of the image."""
    keys: dict[int, bytes] = field(default_factory=dict)
    """Of the other images."""
    cache: ResultCache | None = None

    def store(self, index: int, result: Arrays) -> None:
        """Stores the result of image `index`, unless it was known."""
        if self.cache is not None and index in self.keys:
            self.cache.put(self.keys[index], result)


def compute_keys(context: Sequence[bytes], images: dict[int, bytes]) -> dict[int, bytes]:
    """A key for each image: SHA-256 over its bytes, and before them over all that decides its result beside them."""
    # Digests have one length, so no two contexts run into each other.
    prefix = sha256(b"".join(sha256(part).digest() for part in context))
    keys = {}
    for index, image in images.items():
        digest = prefix.copy()
        digest.update(image)
        keys[index] = digest.digest()
    return keys


def _size(result: Arrays) -> int:
    return ENTRY_BYTES + sum(array.nbytes for array in result)
