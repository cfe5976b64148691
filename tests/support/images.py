"""Images as the bytes of a file."""

import io
from typing import Any

import numpy as np
from PIL import Image

QUICK: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 1}, "AVIF": {"speed": 10}}
"""Options of Pillow that make writing quick. PNG has the same pixels; AVIF is lossy at every speed."""


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """`image`, or its pixels uint8 [H, W, 3], as a file in Pillow's format `form`, written quickly, with `options`."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        out, form, **{**QUICK.get(form, {}), **options}
    )
    return out.getvalue()
