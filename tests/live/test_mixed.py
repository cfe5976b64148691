"""A hundred and twenty different requests at once: each answered as if it had been alone."""

import asyncio
import base64
import io
import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live.conftest import LiveServer, Start

Request = dict[str, Any]


@pytest.fixture(scope="module")
def variants(photographs) -> list[bytes]:
    """Photographs in every format and mode that is served."""
    astronaut, chelsea, coffee, rocket = photographs.values()
    palette = coffee.quantize(64)
    alpha = chelsea.copy()
    alpha.putalpha(Image.radial_gradient("L").resize(chelsea.size))
    deep = Image.fromarray(np.asarray(rocket.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (astronaut, "JPEG", {"quality": 90}),
        (chelsea, "JPEG", {"progressive": True}),
        (coffee, "JPEG", {"exif": turned}),
        (rocket.convert("CMYK"), "JPEG", {}),
        (astronaut.convert("L"), "JPEG", {}),
        (coffee, "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (alpha, "PNG", {}),
        (deep, "PNG", {}),
        (rocket.convert("1"), "PNG", {}),
        (chelsea, "WEBP", {"quality": 80}),
        (alpha, "WEBP", {"lossless": True}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)]}),
        (rocket, "BMP", {}),
        (astronaut, "TIFF", {"compression": "tiff_lzw"}),
        (coffee, "AVIF", {"quality": 60}),
    ]
    files = []
    for image, kind, options in saved:
        out = io.BytesIO()
        image.save(out, kind, **options)
        files.append(out.getvalue())
    return files


def requests(images: list[bytes], count: int) -> list[Request]:
    """`count` requests of both routes, by all three bodies, with several mask ratios; every one is repeatable."""
    draw = random.Random(7)
    made = []
    for number in range(count):
        chosen = [draw.choice(images) for _ in range(draw.choice((1, 1, 1, 2, 5)))]
        if number % 2:
            params = {"pool": draw.choice(("mean", "cls", "tokens")), "keep": draw.choice((1, 1, 0.5)), "seed": number}
            route, accept = "/embed", draw.choice(("application/json", "application/x-npy"))
        else:
            strategy = draw.choice(("random", "block", "grid"))
            view = draw.choice(("composite", "reconstruction", "masked", "panel", "error"))
            ratio = draw.choice((0.75, 0.75, 0.5, 0.9))
            params = {"mask_ratio": ratio, "strategy": strategy, "seed": number, "view": view}
            route, accept = "/reconstruct", draw.choice(("*/*", "application/json"))
        request: Request = {"method": "POST", "url": route, "params": params, "headers": {"accept": accept}}
        body = draw.choice(("multipart", "json", "raw"))
        if body == "multipart":
            request["files"] = [("image", (f"{n}", data)) for n, data in enumerate(chosen)]
        elif body == "json":
            request["json"] = {"images": [base64.b64encode(data).decode() for data in chosen]}
        else:
            request["content"] = chosen[0]
        made.append(request)
    return made


def test_together_as_alone(server: LiveServer, variants: list[bytes]) -> None:
    asked = requests(variants, 120)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        alone = [client.request(**request) for request in asked]
    batches = server.metric("mae_batch_size_count"), server.metric("mae_batch_size_sum")

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=120)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.request(**request) for request in asked))

    together = asyncio.run(all_at_once())
    for one, other in zip(alone, together, strict=True):
        assert one.status_code == other.status_code == 200, (one.text[:300], other.text[:300])
        assert one.content == other.content
        for header in ("content-type", "x-mae-seed", "x-mae-loss", "x-mae-mask-ratio"):
            assert one.headers.get(header) == other.headers.get(header)
    formed = server.metric("mae_batch_size_count") - batches[0]
    images = server.metric("mae_batch_size_sum") - batches[1]
    assert images / formed > 1.5, "the requests did not share batches"
    assert server.metric("mae_queue_images") == server.metric("mae_admitted_images") == 0


def test_a_request_for_each_seed_differs(server: LiveServer, variants: list[bytes]) -> None:
    body = variants[0]
    with httpx.Client(base_url=server.url) as client:
        first, again, other = (client.post("/reconstruct", params={"seed": s}, content=body) for s in (1, 1, 2))
    assert first.content == again.content != other.content


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_the_same_bits_in_a_batch_of_32(start_server: Start, probe: Path, variants: list[bytes], backend: str) -> None:
    """One lane that takes up to 32: the image is alone first, and then among 31 others of another request."""
    server = start_server(weights=probe, backend=backend, lanes=1, max_batch=32, max_delay_ms=200)
    many = [("image", (str(n), variants[n % len(variants)])) for n in range(32)]
    for route, params in (("/embed", {}), ("/reconstruct", {"seed": 5, "view": "reconstruction"})):
        with httpx.Client(base_url=server.url, timeout=60, headers={"accept": "application/json"}) as client:
            alone = client.post(route, params=params, content=variants[3]).json()
            together = client.post(route, params=params, files=many).json()
        key = "embeddings" if route == "/embed" else "reconstructions"
        assert together[key][3] == alone[key][0]
        assert server.metric("mae_batch_size_bucket", le="16.0") < server.metric("mae_batch_size_count")
