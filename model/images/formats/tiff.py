"""TIFF: the layouts that Pillow reads as other colours are read plane by plane, or refused by name.

Sources: TIFF 6.0 (tags and their defaults), TIFF Technical Note 2 (JPEG), Adobe's DNG 1.7 (camera raws).
"""

from __future__ import annotations

from PIL import Image, ImagePalette, UnidentifiedImageError

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError, UnknownFormatError
from model.images.formats.base import StoredImage, open_with_pillow, require_parts
from model.images.formats.tiff_directory import Directory, grey_file
from model.images.opaque import scale_to_bytes
from model.images.orientation import LONG, ORIENTATION, SHORT, TRANSPOSITIONS, read_orientation

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, MAX_VALUE, PLANAR, PREDICTOR = 273, 277, 278, 279, 281, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
COLOUR_MAP = 320
SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING = 330, 338, 339, 530
XMP, PROFILE, DNG_VERSION = 700, 34675, 50706
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
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
UNCOMPRESSED, OLD_JPEG = 1, 6
WITHOUT_COLOURS = (UNCOMPRESSED, 5, 8, 32946)
"""Compressions that know nothing of colours: none, LZW, deflate and its older number."""
UNSIGNED = 1
ALPHA = (1, 2)
"""Extra samples: alpha that the colours are multiplied with, and alpha that they are not."""
SAMPLE_NAMES = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
SIZES = (WIDTH, HEIGHT, BITS, SAMPLES, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT)
PLACES = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
LAYOUT = (COMPRESSION, PHOTOMETRIC, FILL_ORDER, PLANAR, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING)
OPTIONS = (292, 293, COLOUR_MAP, 332, 347, *range(512, 522), 529, 532)
"""Options of fax, the palette, inks, and the tables and colours of JPEG and YCbCr."""
NEEDED_BY_PIXELS = frozenset((*SIZES, *PLACES, *LAYOUT, *OPTIONS))
"""Tags that decoders get. So the others may be damaged, and Pillow does not apply the orientation, as it does for no
other format."""
MAX_TILE_PIXELS, MAX_TILE_SHARE = 4096 * 4096, 4
"""A tile with more pixels than the first, and with more than this many times those of its image, is refused."""
MAX_SUB_DIRECTORIES = 16
MAX_XMP_BYTES = 1_000_000


class TiffImage(StoredImage):
    """The first image of a TIFF."""

    format = "TIFF"

    def __init__(self, data: bytes) -> None:
        """Reads the first directory.

        Raises:
            UnknownFormatError: the file is a camera raw.
            ImageError: the directory is damaged, has too many strips or too few, or describes pixels that are not read.
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
        self._require_all_parts()
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
            self._scale_palette(image)
            image.load()
        return image, image.size

    def decoder_bytes_per_pixel(self) -> float:
        """A compressed strip, which may be the whole image, Pillow's image, and the opaque one that is made of it."""
        is_compressed = self._directory.integer(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
        strip = self._sample_bytes() if is_compressed else 0
        return strip + (8 if self._samples > 1 or self._photometric == PALETTE else 4)

    @property
    def decode_work(self) -> float:
        """As every image; the whole of a tile is decoded."""
        tile_width, tile_height = self._part_size()
        return max(super().decode_work, tile_width * tile_height)

    def decode_bytes(self, least_side: int | None) -> int:
        """As every image; a tile that is larger than the image is decoded as a whole."""
        tile_width, tile_height = self._part_size()
        excess = max(0, tile_width * tile_height - self.size[0] * self.size[1])
        return super().decode_bytes(least_side) + int(excess * self._sample_bytes())

    def _sample_bytes(self) -> float:
        """Bytes of all samples of a pixel."""
        return self._samples * max(self._bits) / 8

    def _part_size(self) -> tuple[int, int]:
        """Width and height of a tile or a strip, read as the decoder reads them."""
        directory, (width, height) = self._directory, self.size
        if self._is_tiled():
            return directory.integer(TILE_WIDTH, 0), directory.integer(TILE_HEIGHT, 0)
        return width, min(directory.integer(ROWS_PER_STRIP, height), height)

    def _part_bytes(self, part: int) -> int:
        """Bytes of the rows of a strip or tile that lie in the image, where nothing is compressed."""
        part_width, part_height = self._part_size()
        across, down = -(-self.size[0] // part_width), -(-self.size[1] // part_height)
        rows = min(part_height, self.size[1] - part // across % down * part_height)
        samples = 1 if self._is_planar else self._samples
        return rows * -(-part_width * samples * max(self._bits) // 8)

    def _is_tiled(self) -> bool:
        """Pillow reads uncompressed images with both kinds of offsets by their strips, and libtiff by their tiles."""
        is_compressed = self._directory.integer(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
        return TILE_WIDTH in self._directory and (is_compressed or STRIP_OFFSETS not in self._directory)

    def _require_all_parts(self) -> None:
        """Checks the strips or tiles: decoders leave those black that the file does not have.

        Old JPEGs are not checked: one stream holds all their pixels, and libtiff does not ask where its strips are.
        """
        directory, (width, height) = self._directory, self.size
        compression = directory.integer(COMPRESSION, UNCOMPRESSED)
        if not (width > 0 and height > 0) or compression == OLD_JPEG:
            return
        part_width, part_height = self._part_size()
        name = "tiles" if self._is_tiled() else "strips"
        if not (part_width > 0 and part_height > 0):
            raise ImageError(f"its {name} are {part_width} x {part_height} pixels: it is damaged")
        if part_width * part_height > max(MAX_TILE_PIXELS, MAX_TILE_SHARE * width * height):
            raise ImageError(f"its tiles of {part_width} x {part_height} pixels are far larger than the image")
        needed = -(-width // part_width) * -(-height // part_height) * (self._samples if self._is_planar else 1)
        in_strips = STRIP_OFFSETS in directory
        offsets = directory.integers(STRIP_OFFSETS if in_strips else TILE_OFFSETS)[:needed]
        sizes = directory.integers(STRIP_BYTES if in_strips else TILE_BYTES)[:needed]
        present = len(offsets) - offsets.count(0)
        if compression != UNCOMPRESSED and needed > 1:  # Pillow computes the sizes of the others, and libtiff of one
            present = min(present, len(sizes) - sizes.count(0))
        if present < needed:
            raise ImageError(f"it has {present} of the {needed} {name} that its size needs")
        if compression == UNCOMPRESSED:
            sizes = tuple(self._part_bytes(part) for part in range(needed))
        # Decoders get a file with a directory behind its end, which they would read as pixels.
        if any(offset + size > self._file_bytes for offset, size in zip(offsets, sizes, strict=False)):
            raise ImageError(f"its {name} reach beyond its end: it is cut short")

    def _scale_palette(self, image: Image.Image) -> None:
        """Reads a palette of 8 bits, which many programs write, as libtiff does: no entry is above 255."""
        if image.mode == "P":
            entries = self._directory.integers(COLOUR_MAP)
            if entries and max(entries) <= 255:
                image.palette = ImagePalette.raw("RGB;L", bytes(entries))

    def _is_read_by_planes(self) -> bool:
        """Whether Pillow would read the image as other values than it has, or not at all."""
        if self._samples == 1:
            inverted = self._bits == (16,) and self._photometric == WHITE_IS_ZERO
            return inverted or (self._bits == (12,) and self._photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO))
        if self._is_planar and self._photometric == CMYK and self._samples >= 4:
            return max(self._bits) == 16
        is_misread = max(self._bits) == 16 or (self._samples > 3 and not self._has_alpha())
        return self._is_planar and self._photometric == RGB and self._samples >= 3 and is_misread

    def _decode_planes(self) -> Image.Image:
        """Reads each sample as a grey image of its own."""
        if self._samples == 1:
            return self._decode_plane(0)
        mode = "CMYK" if self._photometric == CMYK else "RGB"
        return Image.merge(mode, [self._decode_plane(plane) for plane in range(len(mode))])

    def _has_alpha(self) -> bool:
        colours = 4 if self._photometric == CMYK else 3
        return self._samples > colours and self._directory.integer(EXTRA_SAMPLES, 0) in ALPHA

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
        if self._is_read_by_planes() and (self._directory.is_big or self._has_alpha()):
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
