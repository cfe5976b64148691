"""Any order of reservations: budgets keep their bounds, free everything once, and serve in their order."""

import asyncio
import contextlib
import math
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import QueueFull
from service.inference.decode_memory import LIGHT_BYTES, POLL_S, DecodeMemory, MemoryShortage
from service.inference.image_rate import ImageRate
from service.inference.limits import IMAGE, LocalBudget, reserve_images
from service.workers.shared_counters import Column, SharedBudget, SharedCounters
from tests.service.inference.numbered_images import BoundedBudget
from tests.support.virtual_loop import run_virtual

# --- memory of decodes

UNIT = LIGHT_BYTES // 4
LIMIT = 20 * UNIT


class Decode(NamedTuple):
    """An image that is decoded at some time; it is heavy if it needs more than four units."""

    at: int
    """Seconds."""
    units: int
    seconds: int
    grows: int
    """Units that it turns out to need more."""
    waits: bool
    """Whether it waits for the memory, or asks once."""
    patience: int | None
    """Seconds after which its request is cancelled."""

    @property
    def size(self) -> int:
        return self.units * UNIT


DECODES = st.builds(
    Decode,
    at=st.integers(0, 12),
    units=st.integers(1, 20),
    seconds=st.integers(0, 6),
    grows=st.sampled_from([0, 0, 1, 6]),
    waits=st.booleans(),
    patience=st.none() | st.integers(0, 9),
)


@given(st.lists(DECODES, min_size=1, max_size=12))
def test_memory_of_decodes(decodes: list[Decode]) -> None:
    budget = BoundedBudget(LIMIT)
    memory = DecodeMemory(budget)
    queued: list[int] = []
    """The heavy images that wait, in their order."""

    async def grow(decode: Decode, held: int) -> None:
        before = budget.used
        more = decode.grows * UNIT
        try:
            with memory.hold(held + more, held):
                assert budget.used == before + more
                await asyncio.sleep(1)
        except MemoryShortage as shortage:
            assert shortage.needed == held + more and more
            assert budget.used + more > LIMIT or (queued and more > LIGHT_BYTES)

    async def wait(number: int, decode: Decode) -> None:
        is_heavy = decode.size > LIGHT_BYTES
        if is_heavy:
            queued.append(number)
        try:
            reservation = await memory.reserve(decode.size)
            assert not is_heavy or queued[0] == number, "heavy images wait in line"
        finally:
            if is_heavy:
                queued.remove(number)
        try:
            await asyncio.sleep(decode.seconds)
            await grow(decode, decode.size)
        finally:
            reservation.release()
            reservation.release()

    async def ask(decode: Decode) -> None:
        used = budget.used
        try:
            with memory.hold(decode.size):
                assert budget.used == used + decode.size
                await asyncio.sleep(decode.seconds)
        except MemoryShortage:
            assert used + decode.size > LIMIT or (queued and decode.size > LIGHT_BYTES)
        else:
            assert used + decode.size <= LIMIT

    async def request(number: int, decode: Decode) -> None:
        await asyncio.sleep(decode.at + number / 1000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(decode.patience):
                await (wait(number, decode) if decode.waits else ask(decode))

    async def main() -> None:
        async with asyncio.timeout(1000):  # each gets its turn
            await asyncio.gather(*(request(number, decode) for number, decode in enumerate(decodes)))
        assert budget.used == 0 and not queued

    run_virtual(main())


@given(st.lists(st.integers(5, 20), min_size=1, max_size=6), st.integers(1, 4))
def test_a_light_image_never_waits_behind_heavy_ones(heavy: list[int], light: int) -> None:
    """It has its memory within one poll of the time at which that is free."""
    memory = DecodeMemory(LocalBudget(LIMIT))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = await memory.reserve((20 - light) * UNIT)
        waiting = [asyncio.create_task(memory.reserve(units * UNIT)) for units in heavy if units > light]
        await asyncio.sleep(0)
        start = loop.time()
        async with asyncio.timeout(10):
            own = await memory.reserve(light * UNIT)
        assert loop.time() - start <= POLL_S
        own.release()
        first.release()
        for task in waiting:
            (await task).release()
        assert memory.used == 0

    run_virtual(main())


# --- room in the queue


@settings(max_examples=4 * settings.default.max_examples)
@given(
    st.integers(1, 16),
    st.sampled_from([0, 4, 6, 7]),
    st.lists(st.sampled_from([1.0, 0.75, 0.5, 0.3, 0.1]), min_size=1, max_size=4, unique=True),
    st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=30),
)
def test_shares_of_images(room: int, eighths: int, shares: list[float], steps: list[tuple[bool, int]]) -> None:
    shares.sort(reverse=True)
    budget, held = BoundedBudget(room * IMAGE), [room * IMAGE * eighths // 8]
    budget.used = held[0]
    for comes, count in steps:
        used = budget.used
        if not comes:
            if held and (amount := held.pop(count % len(held))):
                budget.give(amount)
            continue
        # Share i is for a queue that is less than 1/2, 3/4, 7/8 … full; the last one is for any.
        fits = [
            share
            for number, share in enumerate(shares, 1)
            if used + count * math.ceil(share * IMAGE) <= room * IMAGE
            and (share == shares[-1] or Fraction(used, room * IMAGE) < 1 - Fraction(1, 2**number))
        ]
        if fits:
            assert reserve_images(budget, count, shares) == fits[0]
            held.append(count * math.ceil(fits[0] * IMAGE))
        else:
            with pytest.raises(QueueFull):
                reserve_images(budget, count, shares)
        assert budget.used == sum(held)


# --- budgets of several processes


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "give", "release", "die"]), st.integers(0, 2), st.integers(1, 6)),
    max_size=60,
)


@given(st.integers(1, 12), STEPS)
def test_budgets_of_several_workers(limit: int, steps: list[tuple[str, int, int]]) -> None:
    """The limit holds for all of them; a worker that dies gives all back."""
    counters = SharedCounters.create(3, keys=2)
    try:
        images = [SharedBudget(counters, worker, Column.ADMITTED, limit, Column.RELEASED) for worker in range(3)]
        keys = [SharedBudget(counters, worker, len(Column) + 1, limit) for worker in range(3)]
        used: dict[str, list[int]] = {"images": [0] * 3, "key": [0] * 3}
        for step, worker, amount in steps:
            for name, budgets in (("images", images), ("key", keys)):
                own = used[name]
                if step == "take":
                    fits = sum(own) + amount <= limit
                    assert budgets[worker].take(amount) == fits
                    own[worker] += amount if fits else 0
                elif step == "die":
                    own[worker] = 0
                elif step == "give" or name == "key":
                    budgets[worker].give(returned := min(amount, own[worker]))
                    own[worker] -= returned
                else:  # a batch takes the images of the worker in the engine process
                    counters.add(worker, Column.RELEASED, returned := min(amount, own[worker]))
                    own[worker] -= returned
            if step == "die":
                counters.clear(worker)
            for name, budgets in (("images", images), ("key", keys)):
                assert {budget.used for budget in budgets} == {sum(used[name])}
                assert 0 <= sum(used[name]) <= limit
        assert counters.total(Column.BYTES) == counters.total(len(Column)) == 0, "other cells stay as they were"
    finally:
        counters.close()


# --- images per second


@given(
    st.sampled_from([0.5, 1.0, 3.0, 7.5, 100.0]),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3_000_000_000), st.integers(1, 25)), min_size=1, max_size=30),
)
def test_no_window_has_more_images_than_the_rate_and_the_burst(
    per_s: float, burst: int, requests: list[tuple[int, int]]
) -> None:
    now, passed = [10**12], list[tuple[int, int]]()
    rate = ImageRate(per_s, burst, lambda: now[0])
    for pause, count in requests:
        now[0] += pause
        if rate.take(count):
            assert rate.take(count) == rate.seconds_until(count) > 0, "a refusal costs nothing"
        else:
            passed.append((now[0], count))
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            counts = [count for _, count in passed[first : last + 1]]
            seconds = Fraction(passed[last][0] - passed[first][0], 10**9)
            # A request of more than the burst passes alone, and is paid for afterwards.
            allowed = burst + Fraction(per_s) * seconds + max(0, counts[-1] - burst)
            assert sum(counts) <= allowed + Fraction(len(counts) * per_s) / 10**9, "but for rounded nanoseconds"
