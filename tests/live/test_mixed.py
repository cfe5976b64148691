"""A hundred and twenty different requests at once: each answered as if it had been alone."""

import asyncio
import base64
import io
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live.conftest import LiveServer, Start
from tests.support.clients import many_connections
from tests.support.gate import FileGate
from tests.support.waiting import until

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


@pytest.fixture(scope="module")
def behind_gate(
    start_server: Start, probe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[LiveServer, FileGate]]:
    """Starts a real engine of a backend, once, with one lane that takes up to 32 images, behind a gate."""

    @cache
    def start(backend: str) -> tuple[LiveServer, FileGate]:
        gate = FileGate(tmp_path_factory.mktemp("gates") / backend)
        fake = {"FAKE": "real", "FAKE_GATE": gate.file}
        return start_server(fake, weights=probe, backend=backend, lanes=1, max_batch=32), gate

    return start


def test_together_as_alone(behind_gate: Callable[[str], tuple[LiveServer, FileGate]], variants: list[bytes]) -> None:
    server, gate = behind_gate("openvino")
    asked = requests(variants, 120)
    before = server.metric("mae_batch_size_sum")
    with httpx.Client(base_url=server.url) as client:
        alone = [client.request(**request) for request in asked]
    images = server.metric("mae_batch_size_sum") - before
    batches = server.metric("mae_batch_size_count")

    async def all_at_once() -> list[httpx.Response]:
        async with many_connections(server.url) as client:
            with gate.closed():
                first = asyncio.create_task(client.request(**asked[0]))  # until its images hold the lane
                await until(lambda: server.metric("mae_lanes_busy") == 1)
                tasks = [asyncio.create_task(client.request(**request)) for request in asked]
                await until(lambda: server.metric("mae_queue_images") >= images)
            return (await asyncio.gather(first, *tasks))[1:]

    together = asyncio.run(all_at_once())
    for one, other in zip(alone, together, strict=True):
        assert one.status_code == other.status_code == 200, (one.text[:300], other.text[:300])
        assert one.content == other.content
        for header in ("content-type", "x-mae-seed", "x-mae-loss", "x-mae-mask-ratio"):
            assert one.headers.get(header) == other.headers.get(header)
    assert (server.metric("mae_batch_size_count") - batches) * 4 < images, "the requests did not share batches"
    assert server.metric("mae_queue_images") == server.metric("mae_admitted_images") == 0


def test_a_request_for_each_seed_differs(server: LiveServer, variants: list[bytes]) -> None:
    body = variants[0]
    with httpx.Client(base_url=server.url) as client:
        first, again, other = (client.post("/reconstruct", params={"seed": s}, content=body) for s in (1, 1, 2))
    assert first.content == again.content != other.content


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_the_same_bits_in_a_batch_of_32(
    behind_gate: Callable[[str], tuple[LiveServer, FileGate]], variants: list[bytes], backend: str
) -> None:
    """The image is alone first, and then among 31 others of another request."""
    server, gate = behind_gate(backend)
    many = [("image", (str(n), variants[n % len(variants)])) for n in range(32)]

    def large_batches() -> float:
        return server.metric("mae_batch_size_count") - server.metric("mae_batch_size_bucket", le="16.0")

    with (
        httpx.Client(base_url=server.url, headers={"accept": "application/json"}) as client,
        ThreadPoolExecutor() as pool,
    ):
        for route, params in (("/embed", {}), ("/reconstruct", {"seed": 5, "view": "reconstruction"})):
            alone, before = client.post(route, params=params, content=variants[3]).json(), large_batches()
            with gate.closed():
                first = pool.submit(client.post, "/embed", content=variants[0])
                server.wait_for_metric("mae_lanes_busy", 1)
                others = pool.submit(client.post, route, params=params, files=many)
                server.wait_for_metric("mae_queue_images", 32)
            assert first.result().status_code == 200
            key = "embeddings" if route == "/embed" else "reconstructions"
            assert others.result().json()[key][3] == alone[key][0]
            assert large_batches() == before + 1
