"""Bytes of a stranger -> the model's square of pixels -> patches.

The bytes decide the format, pixels are counted before they are loaded, and one resize does both the scaling and the
crop. Pillow's decoders and its resize release the GIL, so a pool of threads uses all processors.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.images.preprocess import (
    FORMATS,
    DecodedPixels,
    apply_orientation,
    patches_of,
    patchify,
    read_orientation,
    resize_and_crop,
    to_rgb,
)
from service.errors import InvalidParameter, ServiceError, TooManyPixels, UndecodableImage, UnsupportedType

T = TypeVar("T")


@dataclass(frozen=True)
class DecodedImage:
    """An image as the model sees it, and what a mask drawn over the original needs to follow it."""

    patches: Bytes
    """uint8 [N, P], each in the order row, column, channel."""
    size: tuple[int, int]
    """Width and height as stored, before any turning."""
    orientation: int
    """The EXIF orientation, 1 for upright."""


class ImageDecoder:
    """Decodes images for one model, in a bounded pool of threads."""

    def __init__(self, config: MAEConfig, preprocessing: Preprocessing, max_pixels: int, threads: int) -> None:
        """For the image size and patches of `config`; images of more than `max_pixels` are refused."""
        self._config = config
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        Image.MAX_IMAGE_PIXELS = None  # pixels are counted here, by a limit that the operator sets
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a stranger's damaged metadata are no news to the operator

    @property
    def threads(self) -> int:
        """How many images are decoded at once."""
        return self._threads

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs `work` in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def decode(self, data: bytes, index: int) -> DecodedImage:
        """Decodes image `index` of a request.

        Raises:
            UndecodableImage: damaged, or no image at all.
            UnsupportedType: an image of a kind that is not served.
            TooManyPixels: more than the limit.
        """
        return self._guarded(self._decode, data, f"image {index}", index)

    def removed_by(self, mask: bytes, of: DecodedImage) -> NDArray[np.intp]:
        """Row-major indices of the patches that are more than half white in `mask`, drawn over the stored image.

        Raises:
            InvalidParameter: the mask's size is not the image's.
            UndecodableImage, UnsupportedType, TooManyPixels: as for an image.
        """
        return self._guarded(lambda image: self._removed_by(image, of), mask, "the mask", None)

    def close(self) -> None:
        """Lets the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _guarded(self, work: Callable[[Image.Image], T], data: bytes, what: str, index: int | None) -> T:
        """Opens `data` and works on it; whatever Pillow stumbles over is the image's fault."""
        details = {} if index is None else {"image": index}
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > self._max_pixels:
                    raise TooManyPixels(
                        f"{what} has {image.width} x {image.height} pixels; the limit is {self._max_pixels} in all",
                        limit=self._max_pixels,
                        **details,
                    )
                return work(image)
        except (ServiceError, MemoryError):
            raise
        except UnidentifiedImageError:
            if kind := foreign_kind(data[:1024]):
                raise UnsupportedType(
                    f"{what} is {kind}; served are {', '.join(FORMATS)}", supported=FORMATS, **details
                ) from None
            raise UndecodableImage(f"{what} is no image that can be read ({', '.join(FORMATS)})", **details) from None
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            raise UndecodableImage(f"{what} cannot be decoded: {error}", **details) from error

    def _decode(self, image: Image.Image) -> DecodedImage:
        size, orientation = image.size, read_orientation(image)
        if image.format == "TIFF" and orientation >= 5:  # whose size Pillow gives turned from the start
            size = size[::-1]
        return DecodedImage(patches_of(image, self._config, self._preprocessing), size, orientation)

    def _removed_by(self, mask: Image.Image, of: DecodedImage) -> NDArray[np.intp]:
        if mask.size != of.size:
            raise InvalidParameter(
                f"the mask is {mask.width} x {mask.height} pixels, its image as stored {of.size[0]} x {of.size[1]}",
                parameter="mask",
            )
        white = to_rgb(mask).convert("L").point(lambda value: 255 if value > 127 else 0)
        upright = DecodedPixels.whole(apply_orientation(white, of.orientation))  # drawn over the stored image
        flags = resize_and_crop(upright, self._config, self._preprocessing, Image.Resampling.BOX)
        shares = patchify(np.asarray(flags)[..., None], self._config.patch_size).mean(axis=1)
        return np.flatnonzero(shares > 127.5)


def foreign_kind(head: bytes) -> str | None:
    """What people send by mistake, told by its first bytes, so that the refusal can name it."""
    if b"<svg" in head:
        return "SVG"
    if head.startswith(b"%PDF"):
        return "PDF"
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return None  # of a kind that is served, but damaged
        return "HEIC" if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") else "a video"
    return None
