"""The header of a JPEG: its segments up to the first scan, read without decoding.

Sources: ITU-T T.81 | ISO/IEC 10918-1, annex B (markers, frame and scan headers); T.871 (JFIF, APP0); EXIF 2.32, 4.7.2
(APP1); XMP specification part 3, 1.1.3 (APP1); ICC.1:2022, B.4 (APP2); T.872, 6.5.3 (Adobe's APP14).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError
from model.images.formats.base import require_parts

SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
NOT_A_FRAME = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC lie among the markers of frames, C0 to CF
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
STANDALONE = (0x00, 0x01, *range(0xD0, 0xD9))  # escaped FF, TEM, RST0 to RST7, SOI: no length follows
APP0, APP1, APP2, APP14, COM, START_OF_SCAN = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDA
ICC_PREFIX, EXIF_PREFIX, XMP_PREFIX = b"ICC_PROFILE\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
NEEDED_APPS = {APP0: b"JFIF", APP14: b"Adobe"}
"""Application segments that say how the components are to be read as colours."""
NO_FILL = re.compile(rb"[^\xff]")


@dataclass
class Component:
    """A component of the frame, with its sampling factors."""

    identifier: int
    horizontal: int
    vertical: int


@dataclass
class JpegHeader:
    """What stands before the first scan."""

    size: tuple[int, int] = (0, 0)
    components: list[Component] = field(default_factory=list)
    progressive: bool = False
    restart_interval: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes | None = None
    scan: int = 0
    """Where the first scan's marker is in `data`."""
    components_in_scan: int = 0
    data: bytes = b""
    """The file without metadata: what decoding needs."""

    @property
    def buffers_coefficients(self) -> bool:
        """Whether decoding holds the coefficients of the whole image, because its scans come one after the other."""
        return self.progressive or self.components_in_scan < len(self.components)

    @property
    def num_scans(self) -> int:
        """Number of scans that a decoder reads."""
        return self.data.count(SOS, self.scan) if self.buffers_coefficients else 1

    def coefficient_bytes(self) -> int:
        """Bytes of all coefficients, two for each of the 64 of a block."""
        widest = max(c.horizontal for c in self.components)
        tallest = max(c.vertical for c in self.components)
        units = -(-self.size[0] // (8 * widest)) * -(-self.size[1] // (8 * tallest))
        return 128 * units * sum(c.horizontal * c.vertical for c in self.components)


def read_header(data: bytes) -> JpegHeader:
    """Reads the segments of a file that begins with SOI.

    Raises:
        ImageError: the header is damaged, or has too many segments.
    """
    header, kept, dropped = JpegHeader(), [SOI], False
    exif_parts: list[bytes] = []
    profiles: list[bytes] = []
    position, count = 2, 0
    while True:
        start = position
        position, marker = _next_marker(data, position)
        dropped = dropped or position > start  # decoders pass over fill bytes one by one
        count += 1
        require_parts(count, "segments before its first scan")
        if marker in STANDALONE:
            position += 2
            dropped = True
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        end = position + 2 + length
        if length < 2 or end > len(data):
            raise ImageError("its header is damaged or cut short")
        body = position + 4
        if marker == START_OF_SCAN:
            header.components_in_scan = data[body] if length > 2 else 0
            break
        if 0xC0 <= marker <= 0xCF and marker not in NOT_A_FRAME:
            _read_frame(header, marker, data[body:end])
        elif marker == 0xDD and length == 4:
            header.restart_interval = int.from_bytes(data[body:end])
        elif marker == COM or (marker & 0xF0 == 0xE0 and not data.startswith(NEEDED_APPS.get(marker, b"-"), body)):
            dropped = True
            _keep_metadata(header, exif_parts, profiles, marker, data[body:end])
            position = end
            continue
        kept.append(data[position:end])
        position = end
    if not header.components:
        raise ImageError("its header is damaged or cut short")
    header.exif = b"".join(exif_parts)
    header.profile = _join_profile(profiles)
    header.scan = position
    header.data = data
    if dropped:
        header.scan = sum(map(len, kept))
        kept.append(data[position:])
        header.data = b"".join(kept)
    return header


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """The position and the code of the next marker; bytes between segments, and fill bytes, are skipped."""
    while True:
        if data[position : position + 1] != b"\xff":
            position = data.find(b"\xff", position)
        code = NO_FILL.search(data, position + 1) if position >= 0 else None
        if code is None:
            raise ImageError("its header is damaged or cut short")
        return code.start() - 1, data[code.start()]


def _read_frame(header: JpegHeader, marker: int, frame: bytes) -> None:
    """Reads a frame header: precision, height, width, then identifier, sampling and table of each component."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise ImageError("its header is damaged or cut short")
    if frame[0] != 8:
        raise ImageError(f"it is a JPEG of {frame[0]} bits per channel, which is not read: save it with 8")
    header.size = int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    header.progressive = marker in PROGRESSIVE
    header.components = [
        Component(identifier, max(1, sampling >> 4), max(1, sampling & 15))
        for identifier, sampling in zip(frame[6 : 6 + 3 * frame[5] : 3], frame[7 : 6 + 3 * frame[5] : 3], strict=True)
    ]


def _keep_metadata(
    header: JpegHeader, exif_parts: list[bytes], profiles: list[bytes], marker: int, body: bytes
) -> None:
    """Keeps what is asked of metadata: orientation and profile."""
    if marker == APP1 and body.startswith(EXIF_PREFIX):
        exif_parts.append(body[len(EXIF_PREFIX) :])
    elif marker == APP1 and body.startswith(XMP_PREFIX):
        header.xmp = body[len(XMP_PREFIX) :]
    elif marker == APP2 and body.startswith(ICC_PREFIX):
        profiles.append(body[len(ICC_PREFIX) :])


def _join_profile(parts: list[bytes]) -> bytes | None:
    """Joins the parts of a profile: each begins with its number, from 1 on, and with the number of parts."""
    if not parts:
        return None
    parts.sort(key=lambda part: part[:1])
    numbers = [part[0] if len(part) > 1 else 0 for part in parts]
    if numbers != list(range(1, len(parts) + 1)) or any(part[1] != len(parts) for part in parts):
        return UNUSABLE
    if sum(map(len, parts)) > MAX_PROFILE_BYTES:
        return UNUSABLE
    return b"".join(part[2:] for part in parts)
