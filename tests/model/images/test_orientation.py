"""The orientation of XMP in the ways that programs write it."""

import struct

import pytest

from model.images.orientation import read_orientation

TIFF = b"http://ns.adobe.com/tiff/1.0/"
OTHER = b"http://example.org/"


@pytest.mark.parametrize(
    ("xmp", "orientation"),
    [
        (b'<d xmlns:tiff="%s" tiff:Orientation="6"/>' % TIFF, 6),
        (b"<d xmlns:tiff='%s' tiff:Orientation='6'/>" % TIFF, 6),
        (b'<d tiff:Orientation = "6"/>', 6),
        (b"<d tiff:Orientation\n=\n'6'/>", 6),
        (b"<tiff:Orientation>6</tiff:Orientation>", 6),
        (b"<tiff:Orientation>\n  6\n</tiff:Orientation >", 6),
        (b'<d xmlns:t="%s"><t:Orientation>6</t:Orientation></d>' % TIFF, 6),
        (b"<d xmlns:ns1 = '%s' ns1:Orientation='6'/>" % TIFF, 6),
        (b'<d xmlns:o="%s" xmlns:tiff="%s" o:Orientation="3" tiff:Orientation="6"/>' % (OTHER, TIFF), 6),
        (b'<d xmlns:t="%s" xmlns:not-t="%s" not-t:Orientation="3" t:Orientation="6"/>' % (TIFF, OTHER), 6),
        (b'<d xmlns:o="%s" o:Orientation="6"/>' % OTHER, 1),
        (b'<d tiff:Orientation="9"/>', 1),
        (b'<d tiff:Orientation="66"/>', 1),
        (b"<d tiff:Orientation=" + b" " * 1_000_000, 1),
        (b"xmlns:" * 160_000, 1),
    ],
)
def test_the_orientation_of_xmp(xmp: bytes, orientation: int) -> None:
    assert read_orientation(b"", xmp) == orientation


EXIF = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)


def test_a_block_of_prefixes_is_not_copied_for_each_of_them() -> None:
    """Six million copies of 36 MB would take hours."""
    assert read_orientation(b"Exif\0\0" * 2 + EXIF) == 6
    assert read_orientation(b"Exif\0\0" * 6_000_000 + EXIF) == 1
