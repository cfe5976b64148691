"""Bodies as clients write them, read to their images."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx

from service.api.bodies import ImagesBody, read_images

IMAGES = [b"\x89PNG\r\n\x1a\n first", b"\r\n--second\r\n--\r\n", bytes(range(256)) * 40]


def read(
    kind: str, body: bytes | Iterable[bytes], max_images: int = 8, takes_mask: bool = False, skips: bool = False
) -> ImagesBody:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in [body] if isinstance(body, bytes) else body:
            yield chunk
        yield b""  # as Starlette ends every stream

    return asyncio.run(read_images(kind, chunks(), max_images, takes_mask, skips))


def form(files: list[tuple[str, Any]], data: dict[str, str] | None = None) -> tuple[str, bytes]:
    """Content-Type and body as httpx writes them."""
    request = httpx.Request("POST", "http://service/embed", files=files, data=data)
    return request.headers["content-type"], request.read()


def images_form(images: list[bytes], name: str = "image") -> tuple[str, bytes]:
    return form([(name, (f"{number}.png", image, "image/png")) for number, image in enumerate(images)])


def raw_form(*heads: str | bytes, content: bytes = b"image") -> bytes:
    """A form with the boundary x whose parts have these headers."""
    lines = [head.encode() if isinstance(head, str) else head for head in heads]
    return b"".join(b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head in lines) + b"--x--\r\n"
