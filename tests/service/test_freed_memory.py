"""Freed memory goes back to the system. The numbers are those that Linux has of this process."""

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.freed_memory import start_trimming
from tests.support.waiting import until

ARENAS = """
import ctypes, os, sys, threading
from service.freed_memory import share_one_arena

if sys.argv[1] == "shared":
    share_one_arena()
threads, alive = 4, threading.Barrier(5)

def allocate():
    blocks = [bytearray(10_000) for _ in range(100)]
    alive.wait()
    alive.wait()

for _ in range(threads):
    threading.Thread(target=allocate, daemon=True).start()
alive.wait()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
library.malloc_info(0, ctypes.c_void_p(library.fdopen(1, b"w")))
library.fflush(None)
alive.wait()
"""
"""Writes glibc's description of its arenas, while four threads have memory."""
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


@pytest.mark.live
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="asks glibc")
@pytest.mark.parametrize(("how", "arenas"), [("shared", 1), ("default", 5)])
def test_threads_share_one_arena(how: str, arenas: int) -> None:
    """Without the call each thread has an arena of its own beside the first one, or the test would show nothing."""
    environment = os.environ | {"MALLOC_ARENA_MAX": "16"}  # by default it depends on the number of CPUs
    if how == "shared":
        del environment["MALLOC_ARENA_MAX"]
    command = [sys.executable, "-c", ARENAS, how]
    described = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout
    assert described.count(b"<heap nr=") == arenas
