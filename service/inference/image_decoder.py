"""Bytes of an uploaded image -> the model's square of pixels -> patches.

The bytes decide the format, the pixels are counted before they are loaded, and one resize both scales and crops.
Pillow's decoders and its resize release the GIL, so a pool of threads uses all CPUs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.images.preprocess import FORMATS, cut, loaded, orientation_of, rgb, square, turned
from service.errors import InvalidParameter, ServiceError, TooManyPixels, UndecodableImage, UnsupportedType

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """The patches of an image, and the facts that a mask drawn over the original needs."""

    patches: Bytes
    """uint8 [N, P], each patch in the order row, column, channel."""
    size: tuple[int, int]
    """Width and height as stored, before the EXIF orientation is applied."""
    orientation: int
    """The EXIF orientation; 1 for upright."""


class ImageDecoder:
    """Decodes images for one model. Its methods may run in several threads at once."""

    def __init__(self, config: MAEConfig, preprocessing: Preprocessing, max_pixels: int) -> None:
        """For the image size and patches of `config`; images of more than `max_pixels` are refused."""
        self._config = config
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        Image.MAX_IMAGE_PIXELS = None  # The operator's limit, which is checked here, replaces Pillow's own.
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Damaged metadata of uploads is no news to the operator.

    def decode(self, data: bytes, index: int) -> DecodedImage:
        """Decodes image `index` of a request.

        Raises:
            UndecodableImage: the image is damaged, or the bytes are no image.
            UnsupportedType: the format is not served.
            TooManyPixels: the image has more pixels than the limit.
        """
        return self._open(data, f"image {index}", self._decode, image=index)

    def removed_by(self, mask: bytes, decoded: DecodedImage) -> NDArray[np.intp]:
        """Row-major indices of the patches that a mask image removes: those that are more than half white in it.

        Args:
            mask: an encoded image, drawn over the stored image.
            decoded: the image that the mask belongs to.

        Raises:
            InvalidParameter: the mask's size is not the image's.
            UndecodableImage, UnsupportedType, TooManyPixels: as for an image.
        """
        return self._open(mask, "the mask", lambda image: self._removed_by(image, decoded))

    def _open(self, data: bytes, name: str, read: Callable[[Image.Image], T], **details: int) -> T:
        """Opens `data`, checks its number of pixels, and reads it. Any error of Pillow's is the image's fault."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > self._max_pixels:
                    raise TooManyPixels(
                        f"{name} has {image.width} x {image.height} pixels; the limit is {self._max_pixels} in all",
                        limit=self._max_pixels,
                        **details,
                    )
                return read(image)
        except (ServiceError, MemoryError):
            raise
        except UnidentifiedImageError:
            if kind := recognise_unserved(data[:1024]):
                raise UnsupportedType(
                    f"{name} is {kind}; served are {', '.join(FORMATS)}", supported=FORMATS, **details
                ) from None
            raise UndecodableImage(f"{name} is no image that can be read ({', '.join(FORMATS)})", **details) from None
        except Exception as error:  # Pillow's decoders raise errors of any class for damaged files.
            raise UndecodableImage(f"{name} cannot be decoded: {error}", **details) from error

    def _decode(self, image: Image.Image) -> DecodedImage:
        size, orientation = image.size, orientation_of(image)
        if image.format == "TIFF" and orientation >= 5:  # Pillow gives its size after the orientation is applied.
            size = size[::-1]
        upright = loaded(image, self._preprocessing.resized_short_side(self._config.image_size))
        pixels = np.asarray(square(upright, self._config, self._preprocessing))
        return DecodedImage(cut(pixels, self._config.patch_size), size, orientation)

    def _removed_by(self, mask: Image.Image, decoded: DecodedImage) -> NDArray[np.intp]:
        if mask.size != decoded.size:
            width, height = decoded.size
            raise InvalidParameter(
                f"the mask is {mask.width} x {mask.height} pixels, its image as stored {width} x {height}",
                parameter="mask",
            )
        white = rgb(mask).convert("L").point(lambda value: 255 if value > 127 else 0)
        upright = turned(white, decoded.orientation)  # The mask was drawn over the stored image.
        flags = square(upright, self._config, self._preprocessing, Image.Resampling.BOX)
        shares = cut(np.asarray(flags)[..., None], self._config.patch_size).mean(axis=1)
        return np.flatnonzero(shares > 127.5)


def recognise_unserved(head: bytes) -> str | None:
    """Names a format that is not served by its first bytes, so that the refusal can name it; None if unknown."""
    if b"<svg" in head:
        return "SVG"
    if head.startswith(b"%PDF"):
        return "PDF"
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return None  # The format is served, so the file is damaged.
        return "HEIC" if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") else "a video"
    return None
