"""Small files of every format that is read, by name: what cuts and mutations begin with."""

from __future__ import annotations

import numpy as np
from PIL import Image

from model.images.open_image import can_read_heif
from tests.support.image_files import (
    ADOBE_RGB,
    add_scans,
    chunk,
    cmyk_profile,
    grey_profile,
    jpeg_file,
    noise,
    png_file,
    tiff_file,
)
from tests.support.images import encoded

SIDE = 24


def image_seeds() -> dict[str, bytes]:
    """Files of a few hundred bytes or a few thousand."""
    values = noise(SIDE, SIDE)
    photo = Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BOX, (0, 0, 3, 3))
    grey, with_alpha = photo.convert("L"), Image.merge("RGBA", (*photo.split(), photo.split()[0]))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.Exif()
    upright[0x0112] = 1
    frames = {"save_all": True, "append_images": [photo.rotate(90)], "duration": 9}
    exif_chunk = chunk(b"eXIf", exif.tobytes()[6:])
    seeds = {
        "baseline.jpg": jpeg_file(photo),
        "progressive.jpg": jpeg_file(photo, progressive=True),
        "restart.jpg": jpeg_file(photo, restart_marker_blocks=1),
        "grey.jpg": jpeg_file(grey),
        "cmyk.jpg": jpeg_file(photo.convert("CMYK"), icc_profile=cmyk_profile()),
        "profile.jpg": jpeg_file(photo, icc_profile=ADOBE_RGB, exif=exif),
        "scans.jpg": add_scans(3, (SIDE, SIDE)),
        "no-end.jpg": jpeg_file(photo)[:-2],
        "rgb.png": encoded(photo),
        "alpha.png": encoded(with_alpha),
        "palette.png": encoded(photo.quantize(8), transparency=0),
        "bits16.png": png_file(noise(9, 9, 3, np.uint16), 16),
        "grey16.png": png_file(noise(9, 9, 1, np.uint16), 16),
        "one-bit.png": png_file(noise(9, 8, 1) & 1, 1),
        "interlaced.png": encoded(photo, interlace=1),
        "profile.png": encoded(grey, icc_profile=grey_profile(2.2), dpi=(72, 72)),
        "exif.png": png_file(noise(9, 9), before=exif_chunk),
        "animated.png": encoded(photo, **frames),
        "lossy.webp": encoded(photo, "WEBP"),
        "lossless.webp": encoded(with_alpha, "WEBP", lossless=True, exif=upright),
        "animated.webp": encoded(photo, "WEBP", icc_profile=ADOBE_RGB, **frames),
        "rgb.bmp": encoded(photo, "BMP"),
        "palette.bmp": encoded(photo.quantize(8), "BMP"),
        "alpha.bmp": encoded(with_alpha, "BMP"),
        "rgb.avif": encoded(photo, "AVIF", exif=exif),
        "alpha.avif": encoded(with_alpha, "AVIF", icc_profile=ADOBE_RGB),
        "one.gif": encoded(photo, "GIF"),
        "animated.gif": encoded(photo.quantize(8), "GIF", comment=b"hello", transparency=0, **frames),
        "raw.tif": encoded(photo, "TIFF"),
        "deflate.tif": encoded(with_alpha, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded(grey, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(photo, "TIFF", compression="jpeg"),
        "fax.tif": encoded(photo.convert("1"), "TIFF", compression="group4"),
        "strips.tif": encoded(grey, "TIFF", strip_size=7 * SIDE),
        "bits16.tif": _tiff16(),
    }
    if can_read_heif():
        seeds["rgb.heic"] = encoded(photo, "HEIF")
    return seeds


def _tiff16() -> bytes:
    tags = [(256, 4, [9]), (257, 4, [9]), (258, 3, [16]), (259, 3, [1]), (262, 3, [0]), (277, 3, [1]), (278, 4, [9])]
    return tiff_file(tags, [noise(9, 9, 1, np.uint16).astype(">u2").tobytes()], ">")
