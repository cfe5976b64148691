"""Opens image files: what they are is told by their bytes, and what decoding will cost is known before it begins.

Service, commands, training and calibration read through `open_image`, so they read the same files as the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from PIL import Image

from model.images.errors import UnknownFormatError, blame_image
from model.images.formats.base import StoredImage
from model.images.formats.foreign import foreign_format, read_format
from model.images.formats.jpeg import JpegImage
from model.images.formats.plain import AvifImage, BmpImage, GifImage, HeifImage
from model.images.formats.png import PngImage
from model.images.formats.tiff import TiffImage
from model.images.formats.webp import WebpImage
from model.images.regular_file import read_regular_file

MAX_PIXELS = 64_000_000
"""Pixels that one image may be decoded to, by default."""
READERS: dict[str, Callable[[bytes], StoredImage]] = {
    "JPEG": JpegImage,
    "PNG": PngImage,
    "WEBP": WebpImage,
    "BMP": BmpImage,
    "AVIF": AvifImage,
    "GIF": GifImage,
    "TIFF": TiffImage,
}
FORMATS = tuple(READERS)
"""The formats that are always read, by Pillow's names."""
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".avif", ".gif", ".tif", ".tiff")
)
"""Suffixes of `FORMATS`, in lower case."""
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
HEIF_HINT = ", which needs pillow-heif: pip install pillow-heif"
JUNK = b"\r\n\0"
"""Bytes that broken senders put before an image."""


@cache
def can_read_heif() -> bool:
    """Whether the extra `heif` is installed; Pillow then reads HEIC and HEIF."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def readable_formats() -> tuple[str, ...]:
    """The formats that are read here, by Pillow's names."""
    return (*FORMATS, "HEIF") if can_read_heif() else FORMATS


def readable_suffixes() -> frozenset[str]:
    """The suffixes of files that are read here, in lower case."""
    return SUFFIXES | HEIF_SUFFIXES if can_read_heif() else SUFFIXES


def open_image(file: str | bytes, max_pixels: int = MAX_PIXELS) -> StoredImage:
    """Reads the header of an image; no pixel is decoded.

    Args:
        file: a path, or the content of a file.
        max_pixels: how many pixels the image may be decoded to; `StoredImage.require_pixels` checks them.

    Raises:
        UnknownFormatError: the bytes are no image of a format that is read.
        ImageError: the image is damaged, or of a kind that is not read; or its file cannot be read, or is no
            regular file.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit holds for the whole process; `max_pixels` takes its place
    with blame_image():
        image = _read_header(file if isinstance(file, bytes) else read_regular_file(file))
    image.max_pixels = max_pixels
    return image


def _read_header(data: bytes) -> StoredImage:
    if data[:1] in (b"\r", b"\n", b"\0") and read_format(data) is None and foreign_format(data) is None:
        data = data.lstrip(JUNK)
    name = read_format(data)
    if name is None:
        raise UnknownFormatError(foreign_format(data))
    if name == "HEIF":
        if not can_read_heif():
            raise UnknownFormatError("HEIC", HEIF_HINT)
        return HeifImage(data)
    return READERS[name](data)
