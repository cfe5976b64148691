"""Clients of a live server: many requests at once, each with an image in one shade of grey."""

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from PIL import Image

SIDE = 224
"""Pixels of the packaged model's square."""


def grey(value: int) -> bytes:
    """A PNG in the shade of grey `value`, 0 to 255. The fake engine embeds it as `value`."""
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def many_connections(url: str) -> httpx.AsyncClient:
    """A client that opens as many connections as there are requests."""
    return httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=500))


async def post_all(url: str, bodies: list[bytes], query: str = "") -> list[httpx.Response]:
    """Posts all bodies to /embed at the same time; the answers are in their order."""
    async with many_connections(url) as client:
        return await asyncio.gather(*(client.post(f"/embed?{query}", content=body) for body in bodies))


@contextmanager
def posts_in_threads(url: str) -> Iterator[Callable[..., Future[httpx.Response]]]:
    """Gives a function that posts a body to /embed in a thread, with a query if there is one; waits in the end.

    A test can wait until a request has arrived before it sends the next one.
    """
    limits = httpx.Limits(max_connections=500)
    with httpx.Client(base_url=url, timeout=60, limits=limits) as client, ThreadPoolExecutor(100) as pool:
        yield lambda body, query="": pool.submit(client.post, f"/embed?{query}", content=body)
