"""The cache of results as a data structure: what it keeps, compared with a list that is searched by hand."""

import asyncio
import random
import tracemalloc
from collections.abc import Callable

import numpy as np

from service.inference.cache import ENTRY_BYTES, LARGE, ResultCache, compute_keys
from service.inference.limits import LocalBudget
from service.metrics import Metrics


def counted(metrics: Metrics) -> tuple[float, ...]:
    names = ("hits", "misses", "evictions")
    values = (metrics.registry.get_sample_value(f"mae_cache_{name}_total") for name in names)
    return tuple(value or 0.0 for value in values)


def test_the_one_used_longest_ago_goes_first() -> None:
    """Random uses against a list in the order of use."""
    metrics, used, drawn = Metrics(), LocalBudget(), random.Random(0)
    limit = 5 * (ENTRY_BYTES + 100)
    cache = ResultCache(limit, used, LocalBudget(), metrics)
    expected: list[tuple[bytes, int]] = []
    hits = misses = evictions = 0
    for _ in range(3000):
        key = bytes([drawn.randrange(12)])
        found = cache.get(key)
        place = next((index for index, (name, _) in enumerate(expected) if name == key), None)
        if place is None:
            assert found is None
            misses += 1
            size = drawn.choice([8, 400, 1600, 2400])
            cache.put(key, (np.zeros(size, np.uint8),))
            expected.append((key, ENTRY_BYTES + size))
            while sum(size for _, size in expected) > limit:
                expected.pop(0)
                evictions += 1
        else:
            hits += 1
            expected.append(expected.pop(place))
            assert found is not None and ENTRY_BYTES + found[0].nbytes == expected[-1][1]
        assert used.used == sum(size for _, size in expected) <= limit
    assert counted(metrics) == (hits, misses, evictions)
    assert min(hits, misses, evictions) > 100


def test_a_result_larger_than_the_cache_drops_nothing() -> None:
    metrics, used = Metrics(), LocalBudget()
    cache = ResultCache(2000, used, LocalBudget(), metrics)
    cache.put(b"small", (np.zeros(8, np.uint8),))
    cache.put(b"large", (np.zeros(1501, np.uint8),))
    assert cache.get(b"small") is not None and cache.get(b"large") is None
    assert counted(metrics) == (1, 1, 0)


def test_a_result_does_not_keep_its_batch() -> None:
    """The engine's results are rows of one array, and the memory of an entry is what is counted for it."""
    cache = ResultCache(10_000_000, used := LocalBudget(), LocalBudget(), Metrics())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            batch = np.zeros((64, 2, 192), np.float32)
            cache.put(number.to_bytes(32, "big"), (batch[3],))
        del batch
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * used.used < held < used.used


def test_the_key_is_that_of_the_bytes_and_of_all_that_decides_the_result() -> None:
    contexts = [(b"a", b"b"), (b"ab", b""), (b"", b"ab"), (b"a", b"b", b""), (b"b", b"a")]
    images = {3: b"one", 5: b"two", 7: b""}
    keys = [compute_keys(context, images) for context in contexts]
    assert all(set(of_one) == {3, 5, 7} for of_one in keys)
    assert len({key for of_one in keys for key in of_one.values()}) == 15
    assert compute_keys(contexts[0], {0: b"one"})[0] == keys[0][3]


def test_keys_of_large_images_are_computed_in_the_pool() -> None:
    calls: list[int] = []

    async def run_in_pool(work: Callable[..., dict[int, bytes]], *arguments: object) -> dict[int, bytes]:
        calls.append(1)
        return work(*arguments)

    async def main() -> None:
        cache = ResultCache(10_000, LocalBudget(), LocalBudget(), Metrics())
        for size, in_pool in ((LARGE, 0), (LARGE + 1, 1)):
            images = {0: bytes(size)}
            first = await cache.look_up((b"k",), images, run_in_pool)
            assert not first.known and len(calls) == in_pool
            first.store(0, (np.arange(3),))
            second = await cache.look_up((b"k",), images, run_in_pool)
            assert second.known[0][0].tolist() == [0, 1, 2] and not second.keys
            calls.clear()

    asyncio.run(main())
