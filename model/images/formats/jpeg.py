"""JPEG: decoded at a part of its size where that is enough, and refused where its scans would cost minutes."""

from __future__ import annotations

from PIL import Image, ImageChops

from model.images.errors import ImageError
from model.images.formats.base import DRAFT_FACTOR, StoredImage, open_with_pillow
from model.images.formats.jpeg_ending import complete, is_ended
from model.images.formats.jpeg_markers import read_header
from model.images.orientation import read_orientation

SCALES = (8, 4, 2, 1)
MAX_SCANS = 300
"""Encoders write at most a few dozen."""
MAX_SCAN_PIXELS = 1 << 31
"""Pixels times scans: a decoder passes over all pixels in each scan, which takes about 0.6 ns for each. An image of 200
megapixels may have ten scans."""
SCAN_WORK = 1 / 16
"""What a scan of a pixel costs, as a share of what a pixel costs in other formats."""
CMYK = 4


class JpegImage(StoredImage):
    """A JPEG, or the first image of an MPO."""

    format = "JPEG"

    def __init__(self, data: bytes) -> None:
        """Reads the header.

        Raises:
            ImageError: it is damaged, or decoding would cost too much.
        """
        self._header = header = read_header(data)
        super().__init__(header.size, read_orientation(header.exif, header.xmp), header.profile, len(data))
        scans = header.num_scans
        if scans > MAX_SCANS:
            raise ImageError(f"it has {scans} scans; the limit is {MAX_SCANS}")
        if scans * self.size[0] * self.size[1] > MAX_SCAN_PIXELS:
            raise ImageError(f"it has {scans} scans of {self.size[0]} x {self.size[1]} pixels, which is too much work")
        self._is_ended = is_ended(header)

    def decoded_size(self, least_side: int | None) -> tuple[int, int]:
        """The size at the smallest scale that leaves enough pixels, which may end in a part of a pixel."""
        scale = self._scale(least_side)
        return -(-self.size[0] // scale), -(-self.size[1] // scale)

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes at the scale of `decoded_size`; a file whose pixels are whole may lack its end."""
        scale = self._scale(least_side)
        exact_size = self.size[0] / scale, self.size[1] / scale
        if self._is_ended:
            return self._decode(self._header.data, least_side), exact_size
        endings = complete(self._header)
        if endings is not None:
            image = self._decode(endings.plain, least_side)
            others = (self._decode(probe, least_side) for probe in endings.probes)
            if all(ImageChops.difference(image, other).getbbox(alpha_only=False) is None for other in others):
                return image, exact_size
        raise ImageError("it is cut short: a part of its pixels is missing")

    def decoder_bytes_per_pixel(self) -> float:
        """Pillow's image, a converted copy of CMYK, and two more images where the end has to be looked into."""
        stored = {1: 1, CMYK: 8}.get(len(self._header.components), 4)
        return stored if self._is_ended else 3 * stored

    @property
    def decode_work(self) -> float:
        """All scans pass over all pixels, whatever the size at which they are decoded."""
        return self.size[0] * self.size[1] * self._header.num_scans * SCAN_WORK * (1 if self._is_ended else 4)

    def decode_bytes(self, least_side: int | None) -> int:
        """Also counts the coefficients, which a decoder holds where an image has several scans."""
        width, height = self.decoded_size(least_side)
        turned = 8 if self.orientation != 1 else 0
        pixels = int(width * height * max(self.decoder_bytes_per_pixel(), turned))
        coefficients = self._header.coefficient_bytes() if self._header.buffers_coefficients else 0
        return pixels + self._file_bytes + coefficients

    def _scale(self, least_side: int | None) -> int:
        if least_side is None:
            return 1
        possible = min(self.size) // (DRAFT_FACTOR * least_side)
        return next((scale for scale in SCALES if possible >= scale), 1)

    def _decode(self, data: bytes, least_side: int | None) -> Image.Image:
        image = open_with_pillow(data, "JPEG")
        if least_side is not None:
            image.draft(None, (DRAFT_FACTOR * least_side, DRAFT_FACTOR * least_side))
        image.load()
        return image
