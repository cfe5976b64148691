"""Freed memory goes back to the system. The numbers are those that Linux has of this process."""

import asyncio
from pathlib import Path

import pytest

from service.freed_memory import start_trimming
from tests.support.waiting import until

BLOCKS, BLOCK_BYTES = 2_000, 50_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory of this process")
def test_blocks_between_others_that_stay_go_back() -> None:
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    full = resident_bytes()
    kept = blocks[::20]
    del blocks
    ended = start_trimming(0.05)
    asyncio.run(until(lambda: resident_bytes() < full - 0.8 * BLOCKS * BLOCK_BYTES))
    ended.set()
    assert len(kept) == BLOCKS / 20
