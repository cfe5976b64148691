"""Reads the images in a request body: multipart/form-data, a raw image, or JSON with base64."""

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
class ImagesBody:
    """The content of a request body: encoded images in order, and the mask picture if there is one."""

    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


async def read_images(content_type: str, chunks: AsyncIterator[bytes], max_images: int, takes_mask: bool) -> ImagesBody:
    """Reads a whole body.

    Args:
        content_type: the Content-Type header; empty if the request has none.
        chunks: the body as it arrives.
        max_images: how many images it may hold at most.
        takes_mask: whether the part (or JSON key) named `mask` is a mask and not an image.

    Raises:
        UnsupportedType: no body of this content type holds images.
        MalformedBody: the body is not of its content type.
        NoImages: the body has no image.
        TooManyImages: the body has more than `max_images`.
        InvalidParameter: the body has a form field that is no file, an unknown JSON key, or two masks.
    """
    kind, options = parse_options_header(content_type)
    if kind == "multipart/form-data":
        body = await _read_multipart(options.get("boundary", ""), chunks, max_images, takes_mask)
    elif kind == "application/json":
        # In a thread: decoding tens of megabytes of base64 would block the event loop for a tenth of a second.
        body = await asyncio.to_thread(_parse_json, await _join(chunks), max_images, takes_mask)
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        body = ImagesBody([image] if (image := await _join(chunks)) else [])
    else:
        hint = (
            ". curl sends this type by default: add -H 'Content-Type: application/octet-stream', or send a form with -F"
            if kind == "application/x-www-form-urlencoded"
            else ""
        )
        raise UnsupportedType(f"a body of type {kind} holds no image: send {ACCEPTED}{hint}", type=kind)
    if not body.images:
        raise NoImages("there is no image in the body")
    return body


async def _join(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _read_multipart(boundary: str, chunks: AsyncIterator[bytes], max_images: int, takes_mask: bool) -> ImagesBody:
    if not boundary:
        raise MalformedBody("the multipart body's Content-Type names no boundary")
    body, content = ImagesBody(), bytearray()
    segment: MultipartSegment | None = None
    # One part more than the images and the mask, so that too many images exceed our limit before the parser's.
    parser = PushMultipartParser(boundary, max_segment_count=max_images + 2)
    try:
        with parser:
            async for chunk in chunks:
                if not chunk or parser.closed:  # the parser takes an empty chunk for the end; an epilogue is ignored
                    continue
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        segment, content = event, bytearray()
                    elif event:
                        content += event
                    elif segment is not None:
                        _add_part(body, segment, bytes(content), max_images, takes_mask)
    except ParserLimitReached as error:
        raise _too_many_images(max_images) if "segment count" in str(error) else MalformedBody(str(error)) from error
    except MultipartError as error:
        raise MalformedBody(f"the multipart body cannot be parsed: {error}") from error
    return body


def _add_part(body: ImagesBody, segment: MultipartSegment, content: bytes, max_images: int, takes_mask: bool) -> None:
    if takes_mask and segment.name == "mask":
        if body.mask is not None:
            raise InvalidParameter("there is more than one mask", parameter="mask")
        body.mask = content
    elif segment.filename is None and not str(segment.content_type or "").startswith(("image/", "application/octet")):
        raise InvalidParameter(
            f"the form field {segment.name!r} is no file: parameters go into the query string", parameter=segment.name
        )
    elif len(body.images) == max_images:
        raise _too_many_images(max_images)
    elif content:
        body.images.append(content)
    else:
        raise NoImages(f"the file part {segment.name!r} is empty", image=len(body.images))


def _parse_json(text: bytes, max_images: int, takes_mask: bool) -> ImagesBody:
    if not text:
        raise NoImages("the body is empty")
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise MalformedBody('the JSON body must be {"images": ["data:image/…;base64,…" or base64, …]}')
    known = ("images", "mask") if takes_mask else ("images",)
    unknown = [key for key in content if key not in known]  # in the body's order
    if unknown:
        raise InvalidParameter(f"unknown JSON key {unknown[0]!r}: known are {', '.join(known)}", parameter=unknown[0])
    images, mask = content["images"], content.get("mask")
    if len(images) > max_images:
        raise _too_many_images(max_images)
    return ImagesBody(
        [_decode_base64(image, f"image {index}", index) for index, image in enumerate(images)],
        None if mask is None else _decode_base64(mask, "the mask", None),
    )


def _decode_base64(text: object, name: str, index: int | None) -> bytes:
    """The bytes of image `index`, or of the mask; `name` is the subject of the error's message."""
    details = {} if index is None else {"image": index}
    if not isinstance(text, str):
        raise MalformedBody(f"{name} must be a string of base64", **details)
    if "://" in text[:16]:
        raise MalformedBody(f"{name} is a URL, and URLs are never fetched: send the bytes in base64", **details)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise MalformedBody(f"{name} is a data URI without base64", **details)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(f"{name} is no base64: {error}", **details) from error


def _too_many_images(limit: int) -> TooManyImages:
    return TooManyImages(f"more than {limit} images in one request", limit=limit)
