"""Every refusal of the contract, from a real server, which documents it and afterwards serves as before."""

import asyncio
import base64
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.live.conftest import LiveServer, Start
from tests.support.images import encoded

KEY = {"authorization": "Bearer right"}


@pytest.fixture(scope="module")
def strict(start_server: Start, photographs) -> Iterator[LiveServer]:
    """A server with narrow limits; after all refusals it must answer what it answered before them."""
    server = start_server(max_images=4, max_body_mb=2, max_inflight_mb=6, api_keys="other,right")
    photograph = encoded(photographs["chelsea"], "JPEG")

    def answers() -> list[bytes]:
        return [
            httpx.post(server.url + route, content=photograph, headers=KEY).raise_for_status().content
            for route in ("/embed", "/reconstruct?seed=3")
        ]

    before = answers()
    yield server
    assert answers() == before
    server.wait_for_metric("mae_admitted_images", 0)
    server.wait_for_metric("mae_inflight_bytes", 0)
    assert httpx.get(server.url + "/readyz").status_code == 200
    assert "Traceback" not in server.text()


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels, 1 bit each, a few kilobytes large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"\0" * 5001 * 100
    packer = zlib.compressobj(9, wbits=-15)
    # After a full flush the same lines are packed into the same bytes, so packing them once is enough.
    packed = packer.compress(lines) + packer.flush(zlib.Z_FULL_FLUSH)
    end, checksum = b"\x03\0", (400 * len(lines) % 65521) << 16 | 1  # Adler-32 of zeros
    data = b"\x78\xda" + 400 * packed + end + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SMALL = encoded(Image.new("RGB", (40, 40), "teal"), "PNG")
FORM, JSON, MULTIPART, TEXT = (
    {"content-type": kind}
    for kind in ("application/x-www-form-urlencoded", "application/json", "multipart/form-data", "text/plain")
)
NINE = encoded(Image.new("L", (9, 9)), "PNG")
CASES: list[tuple[str, dict[str, Any], int, str, str]] = [
    # route, request, status, code, what the message names
    ("/embed", {"content": b""}, 400, "no_images", ""),
    ("/embed", {"files": [("image", ("empty.jpg", b""))]}, 400, "no_images", ""),
    ("/embed", {"json": {"images": []}}, 400, "no_images", ""),
    ("/embed", {"content": b"no picture at all"}, 400, "undecodable_image", "image 0"),
    ("/embed", {"files": [("i", ("a.png", SMALL)), ("i", ("b.jpg", b"words"))]}, 400, "undecodable_image", "image 1"),
    ("/embed", {"content": SMALL[: len(SMALL) // 2]}, 400, "undecodable_image", "image 0"),
    ("/embed", {"json": {"images": ["no base64!"]}}, 400, "malformed_body", "image 0"),
    ("/embed", {"json": {"images": ["https://example.org/cat.jpg"]}}, 400, "malformed_body", "URL"),
    ("/embed", {"json": {"pictures": []}}, 400, "malformed_body", "images"),
    ("/embed", {"content": b"{", "headers": JSON}, 400, "malformed_body", "JSON"),
    (
        "/embed",
        {"content": b"--x", "headers": MULTIPART},
        400,
        "malformed_body",
        "boundary",
    ),
    ("/embed", {"content": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, 415, "unsupported_media_type", "SVG"),
    (
        "/embed",
        {"content": SMALL, "headers": TEXT},
        415,
        "unsupported_media_type",
        "text/plain",
    ),
    ("/embed", {"content": SMALL, "headers": FORM}, 415, "unsupported_media_type", "Content-Type"),
    ("/embed", {"files": [("i", ("a.png", SMALL))] * 5}, 413, "too_many_images", "4"),
    ("/embed", {"json": {"images": [base64.b64encode(SMALL).decode()] * 5}}, 413, "too_many_images", "4"),
    ("/embed", {"content": bomb()}, 413, "too_many_pixels", "40000 x 40000"),
    ("/embed", {"content": b"\0" * 2_000_001}, 413, "body_too_large", "2000000"),
    ("/embed?keep=0", {"content": SMALL}, 422, "invalid_parameter", "keep"),
    ("/embed?keep=0.001", {"content": SMALL}, 422, "invalid_parameter", "keep"),
    ("/embed?pool=max", {"content": SMALL}, 422, "invalid_parameter", "pool"),
    ("/embed?colour=red", {"content": SMALL}, 422, "invalid_parameter", "colour"),
    ("/embed", {"data": {"pool": "cls"}, "files": [("i", ("a.png", SMALL))]}, 422, "invalid_parameter", "pool"),
    *(
        (f"/reconstruct?mask_ratio={ratio}", {"content": SMALL}, 422, "invalid_parameter", "mask_ratio")
        for ratio in ("-1", "0", "0.999", "1", "nan", "inf", "much")
    ),
    ("/reconstruct?seed=-1", {"content": SMALL}, 422, "invalid_parameter", "seed"),
    ("/reconstruct?seed=18446744073709551616", {"content": SMALL}, 422, "invalid_parameter", "seed"),
    ("/reconstruct?patches=196", {"content": SMALL}, 422, "invalid_parameter", "patches"),
    ("/reconstruct?patches=1,x", {"content": SMALL}, 422, "invalid_parameter", "patches"),
    ("/reconstruct?patches=3&strategy=grid", {"content": SMALL}, 422, "invalid_parameter", "strategy"),
    ("/reconstruct?view=side", {"content": SMALL}, 422, "invalid_parameter", "view"),
    (
        "/reconstruct",
        {"files": {"image": SMALL, "mask": NINE}},
        422,
        "invalid_parameter",
        "mask",
    ),
    *(
        (route, {"content": SMALL, "headers": {"accept": "text/html"}}, 406, "not_acceptable", "text/html")
        for route in ("/embed", "/reconstruct")
    ),
    ("/classify", {"content": SMALL, "headers": {"accept": "text/html"}}, 404, "no_head", "classification head"),
]


@pytest.fixture(scope="module")
def documented(strict: LiveServer) -> dict[str, Any]:
    """The paths of the server's OpenAPI document."""
    paths: dict[str, Any] = httpx.get(strict.url + "/openapi.json").json()["paths"]
    return paths


@pytest.mark.parametrize(("route", "request_", "status", "code", "names"), CASES)
def test_refused(
    strict: LiveServer,
    documented: dict[str, Any],
    route: str,
    request_: dict[str, Any],
    status: int,
    code: str,
    names: str,
) -> None:
    answer = httpx.post(strict.url + route, **{**request_, "headers": KEY | request_.get("headers", {})})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert names in error["message"]
    assert set(error) == {"code", "message", "details"}
    assert answer.headers["x-request-id"]
    assert f"`{code}`" in documented[route.partition("?")[0]]["post"]["responses"][str(status)]["description"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
def test_keys(strict: LiveServer, documented: dict[str, Any], headers: dict[str, str]) -> None:
    answer = httpx.post(strict.url + "/embed", content=SMALL, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert "401" in documented["/embed"]["post"]["responses"]
    assert httpx.post(strict.url + "/embed", content=SMALL, headers={"x-api-key": "other"}).status_code == 200
    for open_to_all in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert httpx.get(strict.url + open_to_all).status_code == 200


def test_unknown_routes_and_methods(strict: LiveServer) -> None:
    assert httpx.get(strict.url + "/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(strict.url + "/embed").json()["error"]["code"] == "method_not_allowed"


def test_a_long_body_without_a_length(strict: LiveServer) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 65536
            yield b"\0" * 65536

    answer = httpx.post(strict.url + "/embed", content=chunks(), headers=KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_truncated_jpeg_names_its_image(strict: LiveServer, photographs) -> None:
    whole = encoded(photographs["coffee"], "JPEG")
    files = [("i", ("a", whole)), ("i", ("b", whole[: len(whole) // 2]))]
    answer = httpx.post(strict.url + "/embed", files=files, headers=KEY)
    assert (answer.status_code, answer.json()["error"]["details"]["image"]) == (400, 1)


def test_two_thousand_large_uploads_at_once(start_server: Start, photographs) -> None:
    """Memory stays bounded: most are told 429 before their bodies are read, and a small request is served meanwhile."""
    patience = {"header_timeout_s": 600, "body_stall_s": 600, "request_timeout_s": 600}
    server = start_server(max_body_mb=32, max_inflight_mb=64, **patience)
    photograph = encoded(photographs["chelsea"], "JPEG")
    before, peak = server.resident_mb(), 0.0
    over = threading.Event()
    count, size, piece = 2000, 32_000_000, 500_000
    must_be_refused = count - 64_000_000 // piece  # when everybody has sent one piece, and nobody more

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, server.resident_mb())
            time.sleep(0.02)

    async def upload(connecting: asyncio.Semaphore, go_on: asyncio.Event, answered: list[int]) -> None:
        async with connecting:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {size}\r\n\r\n"
        writer.write(head.encode() + b"\0" * piece)
        answer = asyncio.create_task(reader.readline())
        permission = asyncio.create_task(go_on.wait())
        try:
            await asyncio.wait((answer, permission), return_when="FIRST_COMPLETED")
            for _ in range(size // piece - 1):
                if answer.done():
                    break
                writer.write(b"\0" * piece)
                await asyncio.wait((answer, asyncio.ensure_future(writer.drain())), return_when="FIRST_COMPLETED")
            answered.append(int((await answer).split()[1]))
            if len(answered) >= must_be_refused:
                go_on.set()
        finally:
            permission.cancel()
            writer.transport.abort()

    async def all_at_once() -> list[int]:
        connecting = asyncio.Semaphore(200)  # the listener's backlog is finite
        go_on, answered = asyncio.Event(), list[int]()
        await asyncio.gather(*(upload(connecting, go_on, answered) for _ in range(count)))
        return answered

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        statuses = asyncio.run(asyncio.wait_for(all_at_once(), 300))
    finally:
        over.set()
        watcher.join()
    assert set(statuses[:must_be_refused]) == {429} and set(statuses) <= {400, 429}
    # A body is held once as chunks and once as the whole; each connection may hold 64 KiB unread.
    assert peak - before < 2 * 64 + 2000 * 0.131 + 50, (before, peak)
    assert httpx.post(server.url + "/embed", content=photograph).status_code == 200
    server.wait_for_metric("mae_inflight_bytes", 0)
