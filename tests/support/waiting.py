"""Waiting for a condition on the event loop: a test names the condition, not the time that it takes."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Returns once `condition` is true; fails if it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        await asyncio.sleep(0.002)
