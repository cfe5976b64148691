"""Request bodies -> the images in them: multipart/form-data, a raw image, or JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import orjson
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from service.errors import (
    InvalidParameter,
    MalformedBody,
    NoImages,
    TooManyImages,
    UnsupportedType,
)

ACCEPTED = "multipart/form-data, application/json, image/* or application/octet-stream"


@dataclass
class Payload:
    """What a body held."""

    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


async def read_payload(content_type: str, body: AsyncIterator[bytes], max_images: int, takes_mask: bool) -> Payload:
    """Reads a whole body.

    Args:
        content_type: the header, empty if there was none.
        body: the chunks as they arrive.
        max_images: most images in it.
        takes_mask: whether a part (or JSON key) named `mask` is a mask and no image.

    Raises:
        UnsupportedType: a type that holds no images.
        MalformedBody: not what its type promises.
        NoImages: nothing in it.
        TooManyImages: more than `max_images`.
        InvalidParameter: a form field or a JSON key that means nothing here.
    """
    kind, options = parse_options_header(content_type)
    if kind == "multipart/form-data":
        payload = await _read_multipart(options.get("boundary", ""), body, max_images, takes_mask)
    elif kind == "application/json":
        # Not on the event loop, which base64 of tens of megabytes would hold up for a tenth of a second.
        payload = await asyncio.to_thread(_parse_json, await _whole(body), max_images, takes_mask)
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        payload = Payload([whole] if (whole := await _whole(body)) else [])
    else:
        hint = (
            ". curl sends this type by default: add -H 'Content-Type: application/octet-stream', or send a form with -F"
            if kind == "application/x-www-form-urlencoded"
            else ""
        )
        raise UnsupportedType(f"a body of type {kind} holds no image: send {ACCEPTED}{hint}", type=kind)
    if not payload.images:
        raise NoImages("there is no image in the body")
    return payload


async def _whole(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in body])


async def _read_multipart(boundary: str, body: AsyncIterator[bytes], max_images: int, takes_mask: bool) -> Payload:
    if not boundary:
        raise MalformedBody("the multipart body's Content-Type names no boundary")
    payload, part = Payload(), bytearray()
    segment: MultipartSegment | None = None
    # The images, the mask and one more: so that the limit on images is ours to report.
    parser = PushMultipartParser(boundary, max_segment_count=max_images + 2)
    try:
        with parser:
            async for chunk in body:
                if not chunk or parser.closed:  # an empty chunk would mean the end; what follows the end means nothing
                    continue
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        segment, part = event, bytearray()
                    elif event:
                        part += event
                    elif segment is not None:
                        _take_part(payload, segment, bytes(part), max_images, takes_mask)
    except ParserLimitReached as error:
        raise _too_many(max_images) if "segment count" in str(error) else MalformedBody(str(error)) from error
    except MultipartError as error:
        raise MalformedBody(f"the multipart body cannot be parsed: {error}") from error
    return payload


def _take_part(payload: Payload, segment: MultipartSegment, part: bytes, max_images: int, takes_mask: bool) -> None:
    if takes_mask and segment.name == "mask":
        payload.mask = _once(payload.mask, part)
    elif segment.filename is None and not str(segment.content_type or "").startswith(("image/", "application/octet")):
        raise InvalidParameter(
            f"the form field {segment.name!r} is no file: parameters go into the query string", parameter=segment.name
        )
    elif len(payload.images) == max_images:
        raise _too_many(max_images)
    elif part:
        payload.images.append(part)
    else:
        raise NoImages(f"the file part {segment.name!r} is empty", image=len(payload.images))


def _parse_json(body: bytes, max_images: int, takes_mask: bool) -> Payload:
    if not body:
        raise NoImages("the body is empty")
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is no JSON: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("images"), list):
        raise MalformedBody('the JSON body must be {"images": ["data:image/…;base64,…" or base64, …]}')
    for key in said.keys() - ({"images", "mask"} if takes_mask else {"images"}):
        raise InvalidParameter(f"the JSON key {key!r} means nothing here", parameter=key)
    if len(said["images"]) > max_images:
        raise _too_many(max_images)
    mask = said.get("mask")
    return Payload(
        [_from_base64(image, f"image {index}", index) for index, image in enumerate(said["images"])],
        None if mask is None else _from_base64(mask, "the mask", None),
    )


def _from_base64(text: object, what: str, index: int | None) -> bytes:
    details = {} if index is None else {"image": index}
    if not isinstance(text, str):
        raise MalformedBody(f"{what} must be a string of base64", **details)
    if "://" in text[:16]:
        raise MalformedBody(f"{what} is a URL, and none is ever fetched: send its bytes in base64", **details)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise MalformedBody(f"{what} is a data URI without base64", **details)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(f"{what} is no base64: {error}", **details) from error


def _once(mask: bytes | None, part: bytes) -> bytes:
    if mask is not None:
        raise InvalidParameter("there is more than one mask", parameter="mask")
    return part


def _too_many(limit: int) -> TooManyImages:
    return TooManyImages(f"more than {limit} images in one request", limit=limit)
