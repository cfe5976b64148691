"""ICC profiles -> sRGB, by Little CMS.

Networks were trained on sRGB. The same numbers under another profile are other colours: a photograph in Adobe RGB or
Display P3 looks pale where its profile is ignored, and its vector is another one.

Sources: ICC.1:2022 (the header's colour space at byte 16); IEC 61966-2-1 (sRGB).
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_PROFILE_BYTES = 1_000_000
"""Little CMS never sees a larger profile."""
UNUSABLE = b""
"""Stands for a profile that is there but damaged or too large."""
SRGB_TOLERANCE = 2
"""A profile is sRGB if it moves no colour by more than this many levels of 255: its copies differ by rounding."""
SAMPLES_PER_CHANNEL = 9
COLOUR_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode for the colour spaces of profiles that are converted."""


class UnusableProfile(ValueError):
    """A profile that is damaged, too large, or made for other pixels than the image has."""


class ToSRGB(NamedTuple):
    """A conversion into sRGB."""

    mode: str
    """Pillow's mode of the pixels that it takes."""
    transform: ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Converts an image to RGB."""
        converted = self.transform.apply(image if image.mode == self.mode else image.convert(self.mode))
        assert converted is not None
        return converted


def conversion_to_srgb(profile: bytes | None, mode: str) -> ToSRGB | None:
    """The conversion into sRGB for pixels under an ICC profile; None if there is nothing to convert.

    Args:
        profile: None for an image without one, which counts as sRGB; `UNUSABLE` for one that could not be read.
        mode: Pillow's mode of the pixels: L, RGB or CMYK.

    Raises:
        UnusableProfile: the profile is damaged, too large, or for other pixels.
    """
    if profile is None:
        return None
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        raise UnusableProfile("the profile is damaged or too large")
    expected = COLOUR_SPACES.get(profile[16:20])
    if expected != mode and (expected, mode) != ("RGB", "L"):
        raise UnusableProfile(f"a profile for {profile[16:20]!r} does not fit pixels of mode {mode}")
    return _conversion(profile, expected)


@lru_cache(maxsize=16)
def _conversion(profile: bytes, mode: str) -> ToSRGB | None:
    """Builds a conversion; None if the profile is sRGB. An application has few profiles, each in many images."""
    from PIL import ImageCms  # imported lazily: most images have no profile

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise UnusableProfile(str(error)) from error
    conversion = ToSRGB(mode, transform)
    return None if mode != "CMYK" and _keeps_colours(conversion) else conversion


def _keeps_colours(conversion: ToSRGB) -> bool:
    """Whether a conversion leaves all colours as they are."""
    levels = np.linspace(0, 255, SAMPLES_PER_CHANNEL if conversion.mode == "RGB" else 256).round().astype(np.uint8)
    if conversion.mode == "RGB":
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        colours = levels[None]
    image = Image.fromarray(colours)
    expected = np.asarray(image.convert("RGB")).astype(int)
    return bool(np.abs(np.asarray(conversion(image)) - expected).max() <= SRGB_TOLERANCE)
