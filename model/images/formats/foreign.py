"""What a file is, by its bytes: formats that are read by Pillow's names, and others by the names that people use.

Sources: each format's own specification, and the magic numbers of file(1).
"""

from __future__ import annotations

import re

HEAD_BYTES = 65_536
"""Bytes in which a format is recognised: the prologue of an SVG can be long."""
READ = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AVIF_BRANDS = frozenset((b"avif", b"avis"))
HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
FOREIGN = (
    (b"FUJIFILMCCD-RAW", "a camera raw (RAF)"),
    (b"IIRO", "a camera raw (ORF)"),
    (b"IIRS", "a camera raw (ORF)"),
    (b"MMOR", "a camera raw (ORF)"),
    (b"IIU\0", "a camera raw (RW2)"),
    (b"FOVb", "a camera raw (X3F)"),
    (b"\0MRM", "a camera raw (MRW)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc", "JPEG XR"),
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"8BPS", "a Photoshop document"),
    (b"8BPB", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\2\0", "a cursor (CUR)"),
    (b"icns", "an icon (ICNS)"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"\xabKTX ", "KTX"),
    (b"qoif", "QOI"),
    (b"AT&TFORM", "DjVu"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PAR1", "Parquet"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"\x01\0\0\0\x6c\0\0\0", "a Windows metafile"),
    (b"\x0a\x05\x01", "PCX"),
    (b"\x59\xa6\x6a\x95", "a Sun raster"),
    (b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)"),
    (b"\0\0\1\xba", "a video (MPEG)"),
    (b"\0\0\1\xb3", "a video (MPEG)"),
    (b"FLV\1", "a video (FLV)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)"),
    (b"OggS", "an Ogg stream"),
    (b"ID3", "audio (MP3)"),
    (b"PK\3\4", "a ZIP archive"),
    (b"PK\5\6", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file with git lfs pull"),
)
RIFF_KINDS = {b"AVI ": "a video (AVI)", b"WAVE": "audio (WAV)"}
NETPBM = re.compile(rb"P[1-7Ff]\s")
BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/_-]{64,}[\r\n=]*|(?:[A-Za-z0-9+/]{40,}\r?\n){2,}")
MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<")


def read_format(data: bytes) -> str | None:
    """Pillow's name of the format, if it is one that is read (HEIF included); else None."""
    for magic, name in READ:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(TIFF):
        return None if data[8:10] == b"CR" else "TIFF"
    brands = iso_brands(data)
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS and b"crx " not in brands else None


def foreign_format(data: bytes) -> str | None:
    """What a file is that is not read, with its article; None if that is unknown."""
    if data.startswith(TIFF[:2]) and data[8:10] == b"CR":
        return "a camera raw (CR2)"
    for magic, name in FOREIGN:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF"):
        return RIFF_KINDS.get(data[8:12])
    if brands := iso_brands(data):
        return "a camera raw (CR3)" if b"crx " in brands else "a video"
    if data[4:8] in (b"moov", b"mdat", b"wide"):
        return "a video"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[257:262] == b"ustar":
        return "a tar archive"
    return _text_format(data[:HEAD_BYTES])


def iso_brands(data: bytes) -> frozenset[bytes]:
    """The brands of an ISO base media file (ISO/IEC 14496-12, 4.3); none if it is no such file."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4]), 512, len(data))
    return frozenset([data[8:12], *(data[place : place + 4] for place in range(16, end - 3, 4))])


def _text_format(head: bytes) -> str | None:
    lower = head[:2048].lstrip().lower()
    if MARKUP.match(head):
        if b"<svg" in head:
            return "SVG"
        return "an HTML page" if b"<html" in lower or b"<!doctype html" in lower else "XML"
    if lower.startswith(b"data:"):
        return "a data URI: send its bytes, or JSON"
    if re.match(rb"(https?|s3|gs|file)://", lower):
        return "a URL, and URLs are never fetched: send the bytes"
    if NETPBM.match(head):
        return "Netpbm (PPM)"
    return "base64 text: send its bytes, or JSON" if BASE64_TEXT.match(head) else None
