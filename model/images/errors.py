"""Errors of images: each message says why an image cannot be used, without the image's name."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class ImageError(ValueError):
    """An image that cannot be used; the message says why, without the image's name."""


class UnknownFormatError(ImageError):
    """The bytes are no image of a format that is read.

    Attributes:
        kind: what the bytes are, with its article ("a camera raw", "HEIC"); None if that is unknown.
        hint: how to read such a file all the same; empty if there is no way.
    """

    def __init__(self, kind: str | None = None, hint: str = "") -> None:
        """Bytes of `kind`."""
        super().__init__(f"it is {kind}{hint}" if kind else "it is no image of a known format")
        self.kind = kind
        self.hint = hint


class PixelLimitError(ImageError):
    """An image has more pixels to decode than the limit.

    Attributes:
        size: its width and height as stored.
        limit: the largest number of pixels.
        decoded: width and height of what would be decoded: less than `size` for a JPEG that is decoded at a part of it.
    """

    def __init__(self, size: tuple[int, int], decoded: tuple[int, int], limit: int) -> None:
        """An image of `size` that is decoded to `decoded`, where `limit` pixels are allowed."""
        at = "" if size == decoded else f", decoded at {decoded[0]} x {decoded[1]}"
        super().__init__(f"it has {size[0]} x {size[1]} pixels{at}; the limit is {limit} in all")
        self.size = size
        self.limit = limit
        self.decoded = decoded


@contextmanager
def blame_image() -> Iterator[None]:
    """Makes every exception but MemoryError the image's fault: decoders raise all kinds of them for damaged files.

    Decoders and half images are freed at once: the exception may live long, and it keeps the variables of the functions
    that it left.

    Raises:
        ImageError: instead of the exception.
    """
    try:
        yield
    except (MemoryError, ImageError) as error:
        traceback.clear_frames(error.__traceback__)
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        reason = error.strerror if isinstance(error, OSError) else None
        raise ImageError(reason or str(error)) from error
