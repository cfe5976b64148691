"""Bodies in JSON, as clients write them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from service.api.bodies import ImagesBody, read_images
from service.errors import (
    InvalidParameter,
    MalformedBody,
    NoImages,
    TooManyImages,
)
from tests.support.bodies import IMAGES, read


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def read_json(content: Any, **options: Any) -> ImagesBody:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read("application/json; charset=utf-8", [body[:7], body[7:]], **options)


def test_json_with_base64_and_data_uris() -> None:
    content = {"images": [b64(IMAGES[0]), f"data:image/png;base64,{b64(IMAGES[1])}", f"DATA:;BASE64,{b64(IMAGES[2])}"]}
    assert read_json(content) == ImagesBody(IMAGES)


BASE64 = base64.b64encode(IMAGES[2]).decode()


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(IMAGES[2]).decode(),
        base64.encodebytes(IMAGES[2]).decode().replace("\n", "\r\n"),
        BASE64 + "\n",
        "  " + BASE64,
        BASE64[:8] + "\t" + BASE64[8:],
        BASE64.rstrip("="),
        BASE64[:-1],
        base64.urlsafe_b64encode(IMAGES[2]).decode(),
        base64.urlsafe_b64encode(IMAGES[2]).decode().rstrip("="),
        quote(BASE64, safe=""),
        "data:image/png;base64, " + BASE64,
        "data:image/png; base64," + BASE64,
        "data:image/png;base64 ,\n" + BASE64,
        "\n data:image/png;charset=utf-8;base64," + quote(base64.encodebytes(IMAGES[2]).decode(), safe=""),
        "Data:image/png;Base64," + base64.urlsafe_b64encode(IMAGES[2]).decode().rstrip("="),
    ],
)
def test_base64_as_people_write_it(text: str) -> None:
    assert len(BASE64.rstrip("=")) % 4 and {"+", "/"} <= set(BASE64), "this picture would not show everything"
    assert read_json({"images": [text]}) == ImagesBody([IMAGES[2]])
    assert read_json({"images": [BASE64], "mask": text}, takes_mask=True).mask == IMAGES[2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # "utf-16" writes its mark, as PowerShell does
def test_json_with_a_byte_order_mark(encoding: str) -> None:
    assert read_json(json.dumps({"images": [b64(b"x")]}).encode(encoding)) == ImagesBody([b"x"])


def test_a_key_in_the_singular_is_told_the_plural() -> None:
    with pytest.raises(MalformedBody, match="the key is 'images', not 'image'"):
        read_json({"image": b64(b"x")})


def test_an_empty_mask_is_none() -> None:
    assert read_json({"images": [b64(b"x")], "mask": ""}, takes_mask=True) == ImagesBody([b"x"])


def test_json_images_that_are_skipped() -> None:
    body = read_json({"images": ["%%%%", b64(b"x"), 7, "https://example.org/a.png"]}, skips=True)
    assert body.images == [b"", b"x", b"", b""]
    assert {index: error.details for index, error in body.errors.items()} == {n: {"image": n} for n in (0, 2, 3)}


def test_json_with_a_mask() -> None:
    content = {"images": [b64(b"image")], "mask": f"data:image/png;base64,{b64(b'mask')}"}
    assert read_json(content, takes_mask=True) == ImagesBody([b"image"], b"mask")
    assert read_json({**content, "mask": None}, takes_mask=True) == ImagesBody([b"image"])


@pytest.mark.parametrize("key", ["mask", "image", "seed"])
def test_an_unknown_key_is_named(key: str) -> None:
    with pytest.raises(InvalidParameter, match=f"unknown JSON key '{key}': known are images$") as refusal:
        read_json({"images": [b64(b"x")], key: "eA=="})
    assert refusal.value.details == {"parameter": key}


def test_of_several_unknown_keys_the_first_in_the_body_is_named() -> None:
    """Whatever the order of hashes, which another process has another of: so many orders cannot all agree with it."""
    keys = ["seed", "view", "image", "pool", "model", "top_k", "keep", "strategy"]
    for turn in range(len(keys)):
        rotated = keys[turn:] + keys[:turn]
        with pytest.raises(InvalidParameter) as refusal:
            read_json({**dict.fromkeys(rotated[:4], 0), "images": [b64(b"x")], **dict.fromkeys(rotated[4:], 0)})
        assert refusal.value.details == {"parameter": rotated[0]}


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b'{"images": ["eA=="]',
        b'{"images": [NaN]}',
        b'{"images": [Infinity]}',
        b'{"images": ["\xff"]}',
        b"\xef\xbb\xbf\xff",
        b"[" * 100_000,
        b'{"images": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"null",
        b"[]",
        b'["eA=="]',
        b'"eA=="',
        b"{}",
        b'{"image": "eA=="}',
        b'{"images": "eA=="}',
        b'{"images": {"0": "eA=="}}',
        b'{"images": null}',
    ],
)
def test_malformed_json(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        read_json(body)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (1, "must be a string"),
        (None, "must be a string"),
        ([b64(b"x")], "must be a string"),
        ({"b64": b64(b"x")}, "must be a string"),
        ("https://example.org/cat.jpg", "URLs are never fetched"),
        ("http://169.254.169.254/latest/meta-data", "URLs are never fetched"),
        ("HTTPS://EXAMPLE.ORG/CAT.JPG", "URLs are never fetched"),
        ("file:///etc/passwd", "URLs are never fetched"),
        ("data:image/png,raw", "data URI without base64"),
        ("data:image/png;base64", "data URI without base64"),
        ("%%%%", "no base64"),
        ("eA==garbage", "no base64"),
        ("eA\u00e9=", "no base64"),
        ("eA=x=", "no base64"),
        ("eA%3D%3Dgarbage", "no base64"),
        ("eAAAA", "no base64"),
        ("eA\u00a0==", "no base64"),
    ],
)
def test_an_image_that_is_no_base64_is_named(image: Any, why: str) -> None:
    with pytest.raises(MalformedBody, match=f"image 1 .*{why}") as refusal:
        read_json({"images": [b64(b"x"), image]})
    assert refusal.value.details == {"image": 1}


def test_a_mask_that_is_no_base64_is_named() -> None:
    with pytest.raises(MalformedBody, match="the mask must be a string"):
        read_json({"images": [b64(b"x")], "mask": 1}, takes_mask=True)


def test_an_empty_list_holds_no_images() -> None:
    with pytest.raises(NoImages):
        read_json({"images": []})


def test_json_with_too_many_images() -> None:
    assert len(read_json({"images": [b64(b"x")] * 8}).images) == 8
    with pytest.raises(TooManyImages):
        read_json({"images": [b64(b"x")] * 9})


def test_large_json_does_not_hold_up_the_event_loop() -> None:
    body = json.dumps({"images": [b64(bytes(3_000_000))] * 8}).encode()

    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async def chunks() -> AsyncIterator[bytes]:
            yield body

        counting = asyncio.create_task(count())
        await read_images("application/json", chunks(), 8, False)
        counting.cancel()
        return turns

    assert asyncio.run(main()) > 20
