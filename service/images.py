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

from model.config import MAEConfig, Preprocessing
from model.engines.base import Bytes
from service.errors import InvalidParameter, ServiceError, TooManyPixels, UndecodableImage, UnsupportedType

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "AVIF", "GIF", "TIFF")
BITS_PER_SAMPLE, ORIENTATION = 0x0102, 0x0112  # tags of TIFF, the latter also of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""
# A JPEG may be decoded at a half, a quarter or an eighth of its size, as long as this many pixels are left for each one
# that the resize gives: with 1 the worst pixel of a photograph is 54 levels off, with 2 it is 6.
DRAFT_GAP = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """An image as the model sees it, and what a mask drawn over the original needs to follow it."""

    patches: Bytes
    """uint8 [N, P], each in the order row, column, channel."""
    size: tuple[int, int]
    """Width and height as stored, before any turning."""
    orientation: int
    """The EXIF orientation, 1 for upright."""


class Decoder:
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

    def decode(self, data: bytes, index: int) -> Decoded:
        """Decodes image `index` of a request.

        Raises:
            UndecodableImage: damaged, or no image at all.
            UnsupportedType: an image of a kind that is not served.
            TooManyPixels: more than the limit.
        """
        return self._guarded(self._decode, data, f"image {index}", index)

    def removed_by(self, mask: bytes, of: Decoded) -> NDArray[np.intp]:
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

    def _decode(self, image: Image.Image) -> Decoded:
        size, orientation = image.size, orientation_of(image)
        target = DRAFT_GAP * self._preprocessing.resized_short_side(self._config.image_size)
        image.draft(None, (target, target))
        image.load()
        if image.format == "TIFF":  # which Pillow turns itself, and whose size it gives turned from the start
            upright, size = image, (size[::-1] if orientation >= 5 else size)
        else:
            upright = turned(image, orientation)
        square = self._square(rgb(upright), Image.Resampling[self._preprocessing.filter.upper()])
        return Decoded(self._patches(np.asarray(square)), size, orientation)

    def _removed_by(self, mask: Image.Image, of: Decoded) -> NDArray[np.intp]:
        if mask.size != of.size:
            raise InvalidParameter(
                f"the mask is {mask.width} x {mask.height} pixels, its image as stored {of.size[0]} x {of.size[1]}",
                parameter="mask",
            )
        white = rgb(mask).convert("L").point(lambda value: 255 if value > 127 else 0)
        square = self._square(turned(white, of.orientation), Image.Resampling.BOX)  # drawn over the stored image
        flags = self._patches(np.asarray(square)[..., None]).mean(axis=1)
        return np.flatnonzero(flags > 127.5)

    def _square(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Scales and crops at once: the same pixels as a resize of the short side and then a centre crop."""
        side = self._config.image_size
        if self._preprocessing.resize == "squash":
            return image.resize((side, side), resampling)
        width, height = image.size
        short = self._preprocessing.resized_short_side(side)
        resized = (short * width // min(width, height), short * height // min(width, height))
        left, top = (round((length - side) / 2) for length in resized)
        x, y = width / resized[0], height / resized[1]  # source pixels for one resized pixel
        box = (left * x, top * y, min(width, (left + side) * x), min(height, (top + side) * y))
        return image.resize((side, side), resampling, box=box)

    def _patches(self, pixels: NDArray[np.uint8]) -> Bytes:
        """Pixels [S, S, C] -> patches [N, p * p * C]."""
        grid, p = self._config.grid, self._config.patch_size
        return pixels.reshape(grid, p, grid, p, -1).swapaxes(1, 2).reshape(grid * grid, -1)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none, or none that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata, which every viewer shrugs off: the pixels may be fine
        return 1
    return orientation if orientation in TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image`, stored in an EXIF orientation, as it is meant to be seen."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow reads, as RGB: alpha over white, 16 bits scaled and not clipped.

    Raises:
        ValueError: pixels without a known range (32-bit floats and integers).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # a TIFF may have 12
        most = 2**bits - 1
        scaled = (np.asarray(image) * np.uint32(255) + most // 2) // most
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")


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
