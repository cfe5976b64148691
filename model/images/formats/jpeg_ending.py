"""JPEGs that end too early: told apart are those that lack only their end, and those that lack pixels.

A decoder asks for more bytes in both cases, and once it gets an end marker it paints what is missing grey. So the file
is decoded three times: with an end marker, and with two kinds of arbitrary coded data before it, which differ in every
bit. A file that holds all its pixels gives the same image each time, because a decoder skips what follows the last one.
In any other the arbitrary data become pixels; where only a few bits are missing, one kind may happen to be right.

Source: ITU-T T.81, B.1.1.2 and B.1.1.5 (FF in coded data is followed by 00 or is a marker), E.2 (restart), G.1.1
(progressive scans).
"""

from __future__ import annotations

from typing import NamedTuple

from model.images.formats.jpeg_markers import EOI, SOS, JpegHeader

PADDING = b"\0\xff\r\n"
# Coded data that neither all-zero nor all-one codes explain, and their opposite; no byte is FF, which begins a marker.
ARBITRARY = bytes((97 * n * n + 61 * n + 17) % 251 or 1 for n in range(512))
OPPOSITE = bytes(0xFF ^ byte for byte in ARBITRARY)
NUM_COEFFICIENTS = 64


class Endings(NamedTuple):
    """Files that hold the same image if it lacks only its end."""

    plain: bytes
    """With an end marker."""
    probes: tuple[bytes, ...]
    """With arbitrary coded data before the end marker."""


def is_ended(header: JpegHeader) -> bool:
    """Whether an end marker follows the first scan."""
    return header.data.endswith(EOI) or header.data.find(EOI, header.scan) >= 0


def complete(header: JpegHeader) -> Endings | None:
    """The file with three endings; None if whole scans are missing."""
    if header.buffers_coefficients and not _has_all_scans(header):
        return None
    body = header.data.rstrip(PADDING)
    body += header.data[len(body) : len(body) + 2]  # the last coded byte may itself look like padding
    body = body.rstrip(b"\xff")  # fill bytes, or half a marker: in coded data 00 follows
    restart = _next_restart(header, body)
    probes = (body + data + restart + (data if restart else b"") + EOI for data in (ARBITRARY, OPPOSITE))
    return Endings(body + EOI, tuple(probes))


def _next_restart(header: JpegHeader, body: bytes) -> bytes:
    """The restart marker that comes next in the last scan; empty if the image has none."""
    if not header.restart_interval:
        return b""
    scan = body.rfind(SOS)
    last = max((body.rfind(bytes((0xFF, code)), scan), code) for code in range(0xD0, 0xD8))
    return bytes((0xFF, 0xD0 + (last[1] + 1 - 0xD0) % 8 if last[0] >= 0 else 0xD0))


def _has_all_scans(header: JpegHeader) -> bool:
    """Whether every coefficient of every component has been sent to its last bit."""
    data, position = header.data, header.scan
    missing = {component.identifier: set(range(NUM_COEFFICIENTS)) for component in header.components}
    while position >= 0:
        count = data[position + 4] if position + 4 < len(data) else 0
        body = data[position + 5 : position + 8 + 2 * count]
        if not count or len(body) < 2 * count + 3:
            break
        first, last, approximation = body[2 * count :]
        if not approximation & 15:  # the lowest bit that the scan sends is bit 0
            for identifier in body[0 : 2 * count : 2]:
                missing.get(identifier, set()).difference_update(range(first, last + 1))
        position = data.find(SOS, position + 2)
    return not any(missing.values())
