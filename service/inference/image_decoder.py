"""Decodes uploaded images: bytes -> the model's square of pixels -> patches.

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
from PIL import Image

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.images.preprocess import (
    FORMATS,
    DecodedPixels,
    ImageError,
    PixelLimitError,
    UnknownFormatError,
    apply_orientation,
    open_image,
    patches_of,
    patchify,
    read_orientation,
    resize_and_crop,
    to_rgb,
)
from service.errors import InvalidParameter, TooManyPixels, UndecodableImage, UnsupportedType

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """The patches of an image, and the size and orientation that a mask drawn over the stored image needs."""

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
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Operators need not hear of damaged metadata in uploads.

    def decode(self, data: bytes, index: int) -> DecodedImage:
        """Decodes image `index` of a request.

        Raises:
            UndecodableImage: the image is damaged, or the bytes are no image.
            UnsupportedType: the format is not served.
            TooManyPixels: the image has more pixels than the limit.
        """
        return self._open(data, f"image {index}", self._decode, image=index)

    def read_mask(self, mask: bytes, decoded: DecodedImage) -> NDArray[np.intp]:
        """Row-major indices of the patches that a mask removes: those that are more than half white in it.

        Args:
            mask: an encoded image, drawn over the stored image.
            decoded: the image that the mask belongs to.

        Raises:
            InvalidParameter: the mask and the image as stored have different sizes.
            UndecodableImage, UnsupportedType, TooManyPixels: as for an image.
        """
        size, removed = self._open(mask, "the mask", lambda image: (image.size, self._removed_patches(image, decoded)))
        if removed is None:
            raise InvalidParameter(
                f"the mask is {size[0]} x {size[1]} pixels, its image as stored {decoded.size[0]} x {decoded.size[1]}",
                parameter="mask",
            )
        return removed

    def _open(self, data: bytes, name: str, read: Callable[[Image.Image], T], **details: int) -> T:
        """Opens `data` and calls `read` with the image; `name` is the subject of error messages."""
        try:
            with open_image(io.BytesIO(data), self._max_pixels) as image:
                return read(image)
        except PixelLimitError as error:
            raise TooManyPixels(
                f"{name} has {error.size[0]} x {error.size[1]} pixels; the limit is {self._max_pixels} in all",
                limit=self._max_pixels,
                **details,
            ) from None
        except UnknownFormatError:
            if kind := recognise_unserved(data[:1024]):
                raise UnsupportedType(
                    f"{name} is {kind}; served are {', '.join(FORMATS)}", supported=FORMATS, **details
                ) from None
            raise UndecodableImage(f"{name} is no image that can be read ({', '.join(FORMATS)})", **details) from None
        except ImageError as error:
            raise UndecodableImage(f"{name} cannot be decoded: {error}", **details) from error

    def _decode(self, image: Image.Image) -> DecodedImage:
        size, orientation = image.size, read_orientation(image)
        if image.format == "TIFF" and orientation >= 5:  # Pillow gives its size after the orientation is applied.
            size = size[::-1]
        return DecodedImage(patches_of(image, self._config, self._preprocessing), size, orientation)

    def _removed_patches(self, mask: Image.Image, decoded: DecodedImage) -> NDArray[np.intp] | None:
        if mask.size != decoded.size:
            return None
        white = to_rgb(mask).convert("L").point(lambda value: 255 if value > 127 else 0)
        upright = DecodedPixels.whole(apply_orientation(white, decoded.orientation))  # The mask covers the stored image
        flags = resize_and_crop(upright, self._config, self._preprocessing, Image.Resampling.BOX)
        shares = patchify(np.asarray(flags)[..., None], self._config.patch_size).mean(axis=1)
        return np.flatnonzero(shares > 127.5)


def recognise_unserved(head: bytes) -> str | None:
    """The name of a format that is not served, by the first bytes of a file, for the error; None if it is unknown."""
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
