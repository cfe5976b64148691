"""Decodes uploaded images: bytes -> the model's square of pixels -> patches.

The bytes decide the format, pixels and memory are counted before anything is decoded, and one resize both scales and
crops. Pillow's decoders and its resize release the GIL, so a pool of threads uses all CPUs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.images.errors import ImageError, PixelLimitError, UnknownFormatError, blame_image
from model.images.formats.base import StoredImage
from model.images.opaque import to_opaque
from model.images.open_image import open_image, readable_formats
from model.images.orientation import apply_orientation
from model.images.preprocess import DecodedPixels, load_upright, patchify, resize_and_crop
from service.errors import InvalidParameter, OutOfMemory, TooManyPixels, UndecodableImage, UnsupportedType
from service.freed_memory import return_large_blocks
from service.inference.decode_memory import DecodeMemory, LongDecode, MemoryShortage

HALF = 127.5
LONG_WORK = 8_000_000
"""`decode_work` of an image that may take longer than about 0.3 s; a JPEG of 12 megapixels takes a tenth of it."""
RESIZE_BYTES = 4
"""Bytes of a pixel between the two passes of a resize."""


@dataclass(frozen=True)
class DecodedImage:
    """The patches of an image, and the size and orientation that a mask drawn over the image needs."""

    patches: Bytes
    """uint8 [N, P], each patch in the order row, column, channel."""
    size: tuple[int, int]
    """Width and height as stored, before the EXIF orientation is applied."""
    orientation: int
    """The EXIF orientation; 1 for upright."""
    upright_size: tuple[int, int]
    """Width and height as people see the image."""
    index: int
    """Its number within the request."""

    @classmethod
    def of_patches(cls, patches: Bytes, config: MAEConfig, index: int) -> DecodedImage:
        """The model's square that came as patches, uint8 [N, P]."""
        size = (config.image_size, config.image_size)
        return cls(patches, size, 1, size, index)


class ImageDecoder:
    """Decodes images for one model. Its methods may run in several threads at once."""

    def __init__(
        self,
        config: MAEConfig,
        preprocessing: Preprocessing,
        max_pixels: int,
        memory: DecodeMemory | None = None,
        on_ignored_profile: Callable[[], object] = lambda: None,
    ) -> None:
        """Decodes for the image size and patches of `config`.

        Args:
            config: of the model.
            preprocessing: of the model.
            max_pixels: images of which more pixels would be decoded are refused.
            memory: the memory that all decodes together may hold; by default it is only counted.
            on_ignored_profile: called for each image with a colour profile that cannot be used.
        """
        self._config = config
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._least_side = preprocessing.resized_short_side(config.image_size)
        self.memory = memory or DecodeMemory()
        """The memory that decodes hold."""
        self._on_ignored_profile = on_ignored_profile
        return_large_blocks()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # Operators need not hear of damaged metadata in uploads.

    def decode(self, data: bytes, index: int, reserved: int = 0, may_be_long: bool = True) -> DecodedImage:
        """Decodes image `index` of a request.

        Args:
            data: the file.
            index: for error messages.
            reserved: bytes of `memory` that the caller has reserved for this image.
            may_be_long: whether an image that takes long is decoded, too.

        Raises:
            LongDecode: the image would take long, and must not.
            UndecodableImage: the image is damaged, or the bytes are no image.
            UnsupportedType: the format is not served.
            TooManyPixels: the image has more pixels than the limit, or would take more memory than all decodes may.
            MemoryShortage: there is not enough memory now, and more than `reserved` is needed.
        """
        with _errors_of_service(f"image {index}", image=index):
            image = open_image(data, self._max_pixels)
            image.require_pixels(self._least_side)
            needed = self._needed_bytes(image, self._least_side, f"image {index}", index)
            if image.decode_work > LONG_WORK and not may_be_long:
                raise LongDecode(needed, image.decode_work)
            with self.memory.hold(needed, reserved):
                return self._decode(image, index)

    def decode_when_free(self, data: bytes, index: int) -> DecodedImage:
        """Decodes image `index` as `decode` does; the thread waits until there is enough memory.

        Raises:
            UndecodableImage, UnsupportedType, TooManyPixels: as `decode`.
        """
        with _errors_of_service(f"image {index}", image=index):
            image = open_image(data, self._max_pixels)
            image.require_pixels(self._least_side)
            needed = self._needed_bytes(image, self._least_side, f"image {index}", index)
            with self.memory.hold_when_free(needed):
                return self._decode(image, index)

    def read_mask(
        self, mask: bytes, decoded: DecodedImage, reserved: int = 0, may_be_long: bool = True
    ) -> NDArray[np.intp]:
        """Row-major indices of the patches that are more than half white in a mask, ascending.

        `reserved` and `may_be_long` are those of `decode`.

        Raises:
            InvalidParameter, UndecodableImage, UnsupportedType, TooManyPixels: as `read_mask_square`.
            LongDecode, MemoryShortage: as `decode`.
        """
        with _errors_of_service("the mask"):
            image, turned, needed = self._open_mask(mask, decoded)
            width, height = image.decoded_size(None)
            work = max(image.decode_work, width * height)  # all pixels become black or white, those of a JPEG too
            if work > LONG_WORK and not may_be_long:
                raise LongDecode(needed, work)
            with self.memory.hold(needed, reserved):
                square = self._white_square(image, turned)
        shares = patchify(square[..., None], self._config.patch_size).mean(axis=1)
        return np.flatnonzero(shares > HALF)

    def read_mask_square(self, mask: bytes, decoded: DecodedImage) -> Bytes:
        """How white the pixels of the model's square are in a mask, 0 to 255, uint8 [S, S].

        The thread waits until there is enough memory.

        A mask is drawn over the image as people see it. One of another size may be drawn over the image as stored.

        Args:
            mask: an encoded image.
            decoded: the image that the mask belongs to.

        Raises:
            InvalidParameter: the mask has another size than the image.
            UndecodableImage, UnsupportedType, TooManyPixels: as for an image.
        """
        with _errors_of_service("the mask"):
            image, turned, needed = self._open_mask(mask, decoded)
            with self.memory.hold_when_free(needed):
                return self._white_square(image, turned)

    def _open_mask(self, mask: bytes, decoded: DecodedImage) -> tuple[StoredImage, int, int]:
        """A mask, the orientation that makes it upright as its image is, and the bytes that decoding it takes."""
        image = open_image(mask, self._max_pixels)
        if image.upright_size == decoded.upright_size:
            turned = 1
        elif image.upright_size == decoded.size:
            turned = decoded.orientation
        else:
            raise InvalidParameter(
                f"the mask is {_describe_size(image.upright_size)} pixels,"
                f" its image {_describe_size(decoded.upright_size)}",
                parameter="mask",
            )
        image.require_pixels(None)
        return image, turned, self._needed_bytes(image, None, "the mask")

    def _white_square(self, image: StoredImage, turned: int) -> Bytes:
        white = apply_orientation(_white_parts(image), turned)
        flags = resize_and_crop(DecodedPixels.whole(white), self._config, self._preprocessing, Image.Resampling.BOX)
        return np.asarray(flags)[..., 0]

    def _decode(self, image: StoredImage, index: int) -> DecodedImage:
        pixels = load_upright(image, self._least_side)
        square = resize_and_crop(pixels, self._config, self._preprocessing)
        if pixels.profile_was_ignored:
            self._on_ignored_profile()
        patches = patchify(np.asarray(square), self._config.patch_size)
        return DecodedImage(patches, image.size, image.orientation, image.upright_size, index)

    def _needed_bytes(self, image: StoredImage, least_side: int | None, name: str, index: int | None = None) -> int:
        """The most bytes that decoding and resizing hold.

        Raises:
            TooManyPixels: all decodes together may not hold as much.
        """
        width, height = image.upright_size
        rows = height if self._preprocessing.resize == "squash" else min(width, height)
        needed = image.decode_bytes(least_side) + RESIZE_BYTES * self._config.image_size * rows
        limit = self.memory.limit
        if limit is not None and needed > limit:
            raise TooManyPixels(
                f"{name} would take {needed / 1e6:.0f} MB of memory to decode; MAX_DECODE_MB allows {limit / 1e6:.0f}",
                limit=limit,
                **({} if index is None else {"image": index}),
            )
        return needed


@contextmanager
def _errors_of_service(name: str, **details: int) -> Iterator[None]:
    """Turns the errors of an image into those of the service; `name` is the subject of their messages."""
    try:
        yield
    except PixelLimitError as error:
        raise TooManyPixels(f"{name} {str(error).removeprefix('it ')}", limit=error.limit, **details) from None
    except UnknownFormatError as error:
        served = ", ".join(readable_formats())
        if error.kind is None:
            raise UndecodableImage(f"{name} is no image that can be read ({served})", **details) from None
        raise UnsupportedType(
            f"{name} is {error.kind}{error.hint}; served are {served}", supported=readable_formats(), **details
        ) from None
    except MemoryShortage:  # of what decodes may hold together: the image waits
        raise
    except MemoryError as error:
        # without `details.image`: an image that is not at fault is not skipped
        raise OutOfMemory(f"there is no memory left to decode {name}") from error
    except ImageError as error:
        raise UndecodableImage(f"{name} cannot be decoded: {error}", **details) from error


def _white_parts(image: StoredImage) -> Image.Image:
    """The upright mask in black and white, mode L.

    What is transparent counts as white, unless all else is white too: then somebody has painted white on a
    transparent ground, and only what is painted counts.
    """
    with blame_image():
        decoded, _ = image.decode(None)
        grey = to_opaque(decoded, image.white_level, image.alpha_may_be_unused).convert("L")
        if decoded.has_transparency_data and np.asarray(grey).min() > HALF:
            grey = decoded.convert("RGBA").getchannel("A")
    white = grey.point(lambda value: 255 if value > HALF else 0)
    return apply_orientation(white, image.orientation)


def _describe_size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
