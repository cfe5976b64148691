"""Reads the images in a request body: multipart/form-data, a raw image, or JSON with base64."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

from service.api.base64_text import decode_base64
from service.errors import (
    InvalidParameter,
    MalformedBody,
    NoImages,
    ServiceError,
    TooManyImages,
    UnsupportedType,
)

RAW_TYPES = ("application/octet-stream", "application/x-image", "")
"""Types of a body that is one image, beside `image/*`; `application/x-image` is what clients of SageMaker send."""
ACCEPTED = "multipart/form-data, application/json, image/* or application/octet-stream"
JSON_BODY = 'the JSON body must be {"images": ["data:image/…;base64,…" or base64, …]}'
# A boundary may stand without quotes although RFC 9110 asks for them, as in boundary==_Part_1=
BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.IGNORECASE)
ESCAPED = re.compile(r"\\(.)")
# Also without its end: else each quote would be tried as the beginning of another string, in quadratic time.
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?$)', re.DOTALL)
ENCODED_FILENAME = re.compile(r";\s*filename\*\s*=", re.IGNORECASE)
FILE_DISPOSITIONS = ("attachment", "inline", "file")
# The parts of a form beside its images: the mask, and empty ones.
OTHER_PARTS = 32
MAX_PADDING = 1000
"""Most blanks between a boundary and the end of its line."""


@dataclass
class ImagesBody:
    """The content of a request body: encoded images in order, and the mask picture if there is one."""

    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None
    errors: dict[int, ServiceError] = field(default_factory=dict)
    """The errors of images that could not be read, by index, where the request skips such images; they are empty."""


async def read_images(
    content_type: str, chunks: AsyncIterator[bytes], max_images: int, takes_mask: bool, skips: bool = False
) -> ImagesBody:
    """Reads a whole body.

    Args:
        content_type: the Content-Type header; empty if the request has none.
        chunks: the body as it arrives.
        max_images: how many images it may hold at most.
        takes_mask: whether the part (or JSON key) named `mask` is a mask and not an image.
        skips: whether an image that cannot be read goes into the body's `errors` instead of being raised.

    Raises:
        UnsupportedType: no body of this content type holds images.
        MalformedBody: the body is not of its content type.
        NoImages: the body has no image.
        TooManyImages: the body has more than `max_images`.
        InvalidParameter: the body has a form field that is no file, an unknown JSON key, or two masks.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _read_multipart(content_type, chunks, max_images, takes_mask, skips)
    elif kind == "application/json":
        # In a thread: decoding tens of megabytes of base64 would block the event loop for a tenth of a second.
        body = await asyncio.to_thread(_parse_json, await join(chunks), max_images, takes_mask, skips)
    elif kind.startswith("image/") or kind in RAW_TYPES:
        body = ImagesBody([image] if (image := await join(chunks)) else [])
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


async def join(chunks: AsyncIterator[bytes]) -> bytes:
    """The whole body."""
    return b"".join([chunk async for chunk in chunks])


class _FormParser(PushMultipartParser):  # type: ignore[misc]  # the library has no types
    """Also takes a part as a file whose Content-Disposition is `attachment`, or whose file name is only encoded."""

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> MultipartSegment:
        headers = {name: _decode_header(value) for name, value in headerlist}
        disposition = headers.get("Content-Disposition", "")
        kind, semicolon, options = disposition.partition(";")
        is_file = kind.strip().lower() in FILE_DISPOSITIONS
        if is_file:
            headers["Content-Disposition"] = f"form-data{semicolon}{options}"
        segment = super()._create_segment(list(headers.items()))
        if segment.filename is None and (is_file or ENCODED_FILENAME.search(QUOTED.sub('""', disposition))):
            segment.filename = "file"
        return segment


class _BoundaryPadding:
    """Removes the blanks between a boundary and the end of its line, which RFC 2046, section 5.1.1, allows.

    The parser refuses them.
    """

    def __init__(self, boundary: bytes) -> None:
        """Nothing has arrived yet."""
        self._delimiter = b"\r\n--" + boundary
        self._unfinished = b"\r\n"  # the first boundary may stand without it
        """What has arrived of a line that may become a boundary with blanks."""

    def remove(self, chunk: bytes) -> bytes:
        """What the parser may read now. It misses nothing if `chunk` was the last: a form ends with two hyphens."""
        data = self._unfinished + chunk
        if self._delimiter + b" " in data or self._delimiter + b"\t" in data:
            padded = re.escape(self._delimiter) + rb"[ \t]{1,%d}(?=\r\n)" % MAX_PADDING
            data = re.sub(padded, lambda _: self._delimiter, data)
        end = self._find_unfinished(data)
        self._unfinished = data[end:]
        return data[:end]

    def _find_unfinished(self, data: bytes) -> int:
        """The index from which `data` may be the beginning of a boundary with blanks; its length if there is none."""
        size = len(self._delimiter)
        start = data.rfind(self._delimiter, -(size + MAX_PADDING + len(b"\r")))
        if start >= 0 and not data[start + size :].strip(b" \t\r"):
            return start
        start = data.rfind(b"\r", -size)
        return start if start >= 0 and self._delimiter.startswith(data[start:]) else len(data)


def _decode_header(value: str) -> str:
    """A header of a part as UTF-8 if it is that; the parser has read it as Latin-1."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


async def _read_multipart(
    content_type: str, chunks: AsyncIterator[bytes], max_images: int, takes_mask: bool, skips: bool
) -> ImagesBody:
    found = BOUNDARY.search(content_type)
    quoted, plain = found.groups() if found else (None, "")
    text = plain.strip() if quoted is None else ESCAPED.sub(r"\1", quoted)
    if not text:
        raise MalformedBody("the multipart body's Content-Type names no boundary")
    body, content = ImagesBody(), bytearray()
    segment: MultipartSegment | None = None
    boundary = text.encode("latin-1", "replace")
    padding = _BoundaryPadding(boundary)
    try:
        with _FormParser(
            boundary,
            max_segment_count=max_images + OTHER_PARTS,
            header_charset="latin-1",
        ) as parser:
            async for chunk in chunks:
                data = padding.remove(chunk)
                if not data or parser.closed:  # the parser takes an empty chunk for the end; an epilogue is ignored
                    continue
                for event in parser.parse(data):
                    if isinstance(event, MultipartSegment):
                        segment, content = event, bytearray()
                    elif event:
                        content += event
                    elif segment is not None:
                        _add_part(body, segment, bytes(content), max_images, takes_mask, skips)
    except ParserLimitReached as error:
        raise too_many_images(max_images) if "segment count" in str(error) else MalformedBody(str(error)) from error
    except MultipartError as error:
        raise MalformedBody(f"the multipart body cannot be parsed: {error}") from error
    return body


def _add_part(
    body: ImagesBody, segment: MultipartSegment, content: bytes, max_images: int, takes_mask: bool, skips: bool
) -> None:
    is_mask = takes_mask and segment.name == "mask"
    if not content and (is_mask or not segment.filename):
        return  # a field of a browser's form in which nothing was chosen
    if is_mask:
        if body.mask is not None:
            raise InvalidParameter("there is more than one mask", parameter="mask")
        body.mask = content
    elif segment.filename is None and not str(segment.content_type or "").startswith(("image/", "application/octet")):
        raise InvalidParameter(
            f"the form field {segment.name!r} is no file: parameters go into the query string", parameter=segment.name
        )
    elif len(body.images) == max_images:
        raise too_many_images(max_images)
    else:
        index = len(body.images)
        if not content:
            error = NoImages(f"the file part {segment.name!r} is empty", image=index)
            if not skips:
                raise error
            body.errors[index] = error
        body.images.append(content)


def _parse_json(text: bytes, max_images: int, takes_mask: bool, skips: bool) -> ImagesBody:
    content = load_json(text)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        hint = ""
        if isinstance(content, dict) and "images" not in content and "image" in content:
            hint = ": the key is 'images', not 'image', and holds a list also for one image"
        raise MalformedBody(JSON_BODY + hint)
    known = ("images", "mask") if takes_mask else ("images",)
    unknown = [key for key in content if key not in known]  # in the body's order
    if unknown:
        raise InvalidParameter(f"unknown JSON key {unknown[0]!r}: known are {', '.join(known)}", parameter=unknown[0])
    images, mask = content["images"], content.get("mask")
    if len(images) > max_images:
        raise too_many_images(max_images)
    body = ImagesBody(mask=None if mask is None else read_base64_image(mask, "the mask", None) or None)
    for index, image in enumerate(images):
        try:
            body.images.append(read_base64_image(image, f"image {index}", index))
        except MalformedBody as error:
            if not skips:
                raise
            body.errors[index] = error
            body.images.append(b"")
    return body


def load_json(text: bytes) -> Any:
    """A body as JSON.

    Raises:
        NoImages: the body is empty.
        MalformedBody: the body is no JSON.
    """
    if not text:
        raise NoImages("the body is empty")
    try:
        return orjson.loads(_as_utf8(text))
    except ValueError as error:  # orjson's is one
        raise MalformedBody(f"the body is no JSON: {error}") from error


def _as_utf8(text: bytes) -> bytes:
    """JSON without the byte order mark that some programs write; in UTF-8 if the mark says UTF-16."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16").encode()
    return text.removeprefix(codecs.BOM_UTF8)


def read_base64_image(text: object, name: str, index: int | None) -> bytes:
    """The bytes of image `index`, or of the mask, from base64 or a data URI.

    `name` is the subject of the error's message.

    Raises:
        MalformedBody: `text` is neither of the two.
    """
    details = {} if index is None else {"image": index}
    if not isinstance(text, str):
        raise MalformedBody(f"{name} must be a string of base64", **details)
    text = text.lstrip()
    if "://" in text[:16]:
        raise MalformedBody(f"{name} is a URL, and URLs are never fetched: send the bytes in base64", **details)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not re.fullmatch(r".*;\s*base64\s*", head, re.IGNORECASE | re.DOTALL):
            raise MalformedBody(f"{name} is a data URI without base64", **details)
    try:
        return decode_base64(text)
    except ValueError as error:
        raise MalformedBody(f"{name} is no base64: {error}", **details) from error


def too_many_images(limit: int) -> TooManyImages:
    """The error of a request with more than `limit` images."""
    return TooManyImages(f"more than {limit} images in one request", limit=limit)
