"""The pixels that the service decodes, and the same pixels by Pillow's and NumPy's own way."""

from typing import Any

import numpy as np
from PIL import Image

from model.config import PRESETS, MAEConfig, Preprocessing
from service.inference.image_decoder import ImageDecoder

TINY = PRESETS["mae_tiny"]
SMALL = MAEConfig(image_size=64, patch_size=16, embed_dim=8, depth=1, num_heads=1, decoder_depth=0)
"""4 x 4 patches."""
ORIENTATIONS = range(1, 9)


def decoder(config: MAEConfig = TINY, max_pixels: int = 10_000_000, **preprocessing: Any) -> ImageDecoder:
    return ImageDecoder(config, Preprocessing(**preprocessing), max_pixels)


def decoded(data: bytes, config: MAEConfig = TINY, **preprocessing: Any) -> np.ndarray:
    """Pixels [S, S, 3], put together patch by patch, row by row, column by column, channel by channel."""
    patches = decoder(config, **preprocessing).decode(data, 0).patches
    assert patches.dtype == np.uint8
    assert patches.shape == (config.num_patches, config.patch_dim)
    p, grid = config.patch_size, config.grid
    pixels = np.zeros((config.image_size, config.image_size, 3), dtype=np.uint8)
    for number, patch in enumerate(patches):
        down, across = divmod(number, grid)
        pixels[down * p : (down + 1) * p, across * p : (across + 1) * p] = patch.reshape(p, p, 3)
    return pixels


def cropped(image: Image.Image, side: int = 224, short: int = 224) -> np.ndarray:
    """The short side scaled to `short`, then the centre square cut out, as torchvision defines both."""
    width, height = image.size
    small = min(width, height)
    size = (int(short * width / small), int(short * height / small))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def farthest(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - expected).max())
