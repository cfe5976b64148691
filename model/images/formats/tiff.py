"""TIFF: the layouts that Pillow reads as other colours are read plane by plane, or refused by name.

Sources: TIFF 6.0 (tags and their defaults), TIFF Technical Note 2 (JPEG), Adobe's DNG 1.7 (camera raws).
"""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError, UnknownFormatError
from model.images.formats.base import StoredImage, open_with_pillow, require_parts
from model.images.formats.tiff_directory import Directory, grey_file
from model.images.opaque import scale_to_bytes
from model.images.orientation import LONG, ORIENTATION, SHORT, TRANSPOSITIONS, read_orientation

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, MAX_VALUE, PLANAR, PREDICTOR = 273, 277, 278, 279, 281, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 330, 338, 339, 530
XMP, PROFILE, DNG_VERSION = 700, 34675, 50706
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
CAMERA_RAW = (32803, 34892)
"""Photometric interpretations: colour filter array, linear raw."""
PHOTOMETRIC_NAMES = {
    0: "white is zero",
    1: "black is zero",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
}
UNCOMPRESSED = 1
WITHOUT_COLOURS = (UNCOMPRESSED, 5, 8, 32946)
"""Compressions that know nothing of colours: none, LZW, deflate and its older number."""
UNSIGNED = 1
ALPHA = (1, 2)
"""Extra samples: alpha that the colours are multiplied with, and alpha that they are not."""
SAMPLE_NAMES = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
SIZES = (WIDTH, HEIGHT, BITS, SAMPLES, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT)
PLACES = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
LAYOUT = (COMPRESSION, PHOTOMETRIC, FILL_ORDER, PLANAR, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING)
OPTIONS = (292, 293, 320, 332, 347, *range(512, 522), 529, 532)
"""Options of fax, the palette, inks, and the tables and colours of JPEG and YCbCr."""
NEEDED_BY_PIXELS = frozenset((*SIZES, *PLACES, *LAYOUT, *OPTIONS))
"""Tags that decoders get. So the others may be damaged, and Pillow does not apply the orientation, as it does for no
other format."""
MAX_SUB_DIRECTORIES = 16
MAX_XMP_BYTES = 1_000_000


class TiffImage(StoredImage):
    """The first image of a TIFF."""

    format = "TIFF"

    def __init__(self, data: bytes) -> None:
        """Reads the first directory.

        Raises:
            UnknownFormatError: the file is a camera raw.
            ImageError: the directory is damaged, has too many strips, or describes pixels that are not read.
        """
        self._data = data
        self._directory = directory = Directory(data)
        if _is_camera_raw(data, directory):
            raise UnknownFormatError("a camera raw")
        self._bits = directory.integers(BITS, (1,))
        self._samples = directory.integer(SAMPLES, len(self._bits))
        self._photometric = directory.integer(PHOTOMETRIC, WHITE_IS_ZERO)
        self._is_planar = directory.integer(PLANAR, 1) == 2 and self._samples > 1
        for tag in (STRIP_OFFSETS, TILE_OFFSETS):
            require_parts(directory.count(tag), "strips or tiles")
        self._require_known_range()
        profile = directory.bytes_of(PROFILE)[: MAX_PROFILE_BYTES + 1] if PROFILE in directory else None
        if profile is not None and not 0 < len(profile) <= MAX_PROFILE_BYTES:
            profile = UNUSABLE
        orientation = directory.optional_integer(ORIENTATION, (SHORT, LONG))
        orientation = orientation or read_orientation(b"", directory.bytes_of(XMP)[:MAX_XMP_BYTES])
        super().__init__(
            (directory.integer(WIDTH, 0), directory.integer(HEIGHT, 0)),
            orientation if orientation in TRANSPOSITIONS else 1,
            profile,
            len(data),
        )
        self.alpha_may_be_unused = EXTRA_SAMPLES not in directory
        if self._bits[0] == 16:
            self.white_level = min(65535, directory.optional_integer(MAX_VALUE, (SHORT, LONG)) or 65535)

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the pixels as they are stored."""
        if self._is_read_by_planes():
            image = self._decode_planes()
        else:
            try:
                image = open_with_pillow(self._directory.file_with(NEEDED_BY_PIXELS), "TIFF")
            except (ImageError, UnidentifiedImageError):
                raise ImageError(self._describe()) from None
            image.load()
        return image, image.size

    def decoder_bytes_per_pixel(self) -> float:
        """A compressed strip, which may be the whole image, Pillow's image, and the opaque one that is made of it."""
        is_compressed = self._directory.integer(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
        strip = self._samples * max(self._bits) / 8 if is_compressed else 0
        return strip + (8 if self._samples > 1 or self._photometric == PALETTE else 4)

    def _is_read_by_planes(self) -> bool:
        """Whether Pillow would read the image as other values than it has, or not at all."""
        if self._samples == 1:
            inverted = self._bits == (16,) and self._photometric == WHITE_IS_ZERO
            return inverted or (self._bits == (12,) and self._photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO))
        is_misread = max(self._bits) == 16 or (self._samples > 3 and not self._has_alpha())
        return self._is_planar and self._photometric == RGB and self._samples >= 3 and is_misread

    def _decode_planes(self) -> Image.Image:
        """Reads each sample as a grey image of its own."""
        if self._has_alpha():
            raise ImageError(self._describe())
        planes = [self._decode_plane(plane) for plane in range(3 if self._samples > 1 else 1)]
        return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)

    def _has_alpha(self) -> bool:
        return self._samples > 3 and self._directory.integer(EXTRA_SAMPLES, 0) in ALPHA

    def _decode_plane(self, plane: int) -> Image.Image:
        """One sample in eight bits, with white as 255."""
        directory, bits = self._directory, self._bits[0]
        tags: dict[int, tuple[int, ...]] = {
            WIDTH: (self.size[0],),
            HEIGHT: (self.size[1],),
            BITS: (bits,),
            PHOTOMETRIC: (BLACK_IS_ZERO,),
            SAMPLES: (1,),
        }
        for tag in (COMPRESSION, FILL_ORDER, ROWS_PER_STRIP, PREDICTOR, TILE_WIDTH, TILE_HEIGHT):
            if tag in directory:
                tags[tag] = (directory.integer(tag, 0),)
        for tag in (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES):
            values = directory.integers(tag)
            share = len(values) // (self._samples if self._is_planar else 1)
            if share:
                tags[tag] = values[plane * share : (plane + 1) * share]
        order = "<" if bits == 12 else directory.order  # samples of 12 bits are packed the same way in both orders
        image = open_with_pillow(grey_file(self._data, order, tags), "TIFF")
        image.load()
        grey = image if bits == 8 else scale_to_bytes(image, self.white_level if bits == 16 else 2**bits - 1)
        return grey.point(lambda level: 255 - level) if self._photometric == WHITE_IS_ZERO else grey

    def _require_known_range(self) -> None:
        sample_format = self._directory.integer(SAMPLE_FORMAT, UNSIGNED)
        if sample_format in SAMPLE_NAMES or max(self._bits) > 16:
            raise ImageError(
                f"its samples are {SAMPLE_NAMES.get(sample_format, 'integers')} of {max(self._bits)} bits,"
                " which have no known range: save it with 8 or 16 bits per channel"
            )
        subsampling = self._directory.integers(SUBSAMPLING, (2, 2))
        compression = self._directory.integer(COMPRESSION, UNCOMPRESSED)
        if self._photometric == YCBCR and compression in WITHOUT_COLOURS and subsampling != (1, 1):
            raise ImageError(f"{self._describe()}, subsampled")
        if self._directory.is_big and self._is_read_by_planes():
            raise ImageError(self._describe())

    def _describe(self) -> str:
        """The sentence for a layout that is not read."""
        colours = PHOTOMETRIC_NAMES.get(self._photometric, f"photometric {self._photometric}")
        layout = ", planar" if self._is_planar else ""
        return (
            f"it is a {'Big' if self._directory.is_big else ''}TIFF of a kind that is not read:"
            f" {self._samples} x {self._bits[0]} bits, {colours}{layout},"
            f" compression {self._directory.integer(COMPRESSION, UNCOMPRESSED)}"
        )


def _is_camera_raw(data: bytes, directory: Directory) -> bool:
    """Whether the directory or one inside it holds the values of a camera's sensor; a preview often comes first."""
    if DNG_VERSION in directory or directory.integer(PHOTOMETRIC, BLACK_IS_ZERO) in CAMERA_RAW:
        return True
    if directory.is_big or not 0 < directory.count(SUB_DIRECTORIES) <= MAX_SUB_DIRECTORIES:
        return False
    try:
        inner = [Directory(data, offset) for offset in directory.integers(SUB_DIRECTORIES)]
        return any(other.integer(PHOTOMETRIC, BLACK_IS_ZERO) in CAMERA_RAW for other in inner)
    except ImageError:
        return False  # they are damaged, and the image itself may be whole
