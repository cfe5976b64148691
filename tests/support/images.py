"""Images as the bytes of a file."""

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """`image`, or its pixels uint8 [H, W, 3], as a file in Pillow's format `form`, written with `options`."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **options)
    return out.getvalue()
