"""How far the service's pixels lie from the model's own plain transform, and what that does to embeddings.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/pixels.py FOLDER --count 500
    PYTHONPATH=. .venv/bin/python tests/benchmarks/pixels.py FOLDER --count 100 --mosaic 2048x1366

The plain transform: decode all of the image, resize it (the model's filter), cut the centre. The service decodes large
JPEGs at a half, a quarter or an eighth, and resizes once, with a box. FOLDER holds photographs at any depth; with
--mosaic each image is made of as many of them as fill it, as a JPEG of quality 85: small photographs, large files.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.engines.base import Engine
from model.engines.build import build
from model.images.opaque import to_rgb
from model.images.preprocess import patchify
from model.masking import all_indices
from service.inference.image_decoder import ImageDecoder
from service.settings import load_settings

BATCH = 8


def plain(data: bytes, short: int, side: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """All pixels, then the resize, then the crop: uint8 [side, side, 3]."""
    image = to_rgb(Image.open(io.BytesIO(data)))
    width, height = image.size
    size = (short * width // min(width, height), short * height // min(width, height))
    left, top = (round((length - side) / 2) for length in size)
    return np.asarray(image.resize(size, resampling).crop((left, top, left + side, top + side)))


def mosaic(files: list[Path], first: int, size: tuple[int, int]) -> bytes:
    """A JPEG of `size`, filled with photographs from `files` beginning with number `first`."""
    whole = Image.new("RGB", size)
    tile, number = 224, first
    for top in range(0, size[1], tile):
        for left in range(0, size[0], tile):
            whole.paste(Image.open(files[number % len(files)]).convert("RGB"), (left, top))
            number += 1
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=85)
    return out.getvalue()


def embeddings(engine: Engine, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Vectors [n, 2, D] of whole images, uint8 [n, N, P]."""
    every_patch = np.repeat(all_indices(patches.shape[1])[None], BATCH, axis=0)
    parts = [patches[start : start + BATCH] for start in range(0, len(patches), BATCH)]
    return np.concatenate([engine.embed(0, part, every_patch[: len(part)]) for part in parts])


def main() -> None:
    """Prints the differences of pixels and the cosines of embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--mosaic", metavar="WxH")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = [files[n * len(files) // arguments.count] for n in range(min(arguments.count, len(files)))]
    if arguments.mosaic:
        width, height = map(int, arguments.mosaic.split("x"))
        images = [mosaic(files, 61 * n, (width, height)) for n in range(arguments.count)]
    else:
        images = [file.read_bytes() for file in files]
    settings = load_settings()
    engine = build(settings.engine, lambda _: None).engine
    config, preprocessing = engine.info.config, engine.info.preprocessing
    short, side = preprocessing.resized_short_side(config.image_size), config.image_size
    decoder = ImageDecoder(config, preprocessing, settings.max_pixels)
    resampling = Image.Resampling[preprocessing.filter.upper()]
    expected = np.stack([patchify(plain(data, short, side, resampling), config.patch_size) for data in images])
    served = np.stack([decoder.decode(data, 0).patches for data in images])
    levels = np.abs(served.astype(np.int16) - expected)
    ours, theirs = (embeddings(engine, patches).astype(np.float64) for patches in (served, expected))
    print(f"{len(images)} images, {engine.info.model_id}, {engine.info.backend} {engine.info.precision}")
    print(f"levels of 255: mean {levels.mean():.3f}, worst image's mean {levels.mean(axis=(1, 2)).max():.2f}, ", end="")
    print(f"99.9 % within {np.percentile(levels, 99.9):.0f}, worst pixel {levels.max()}")
    for pool_index, pool in enumerate(("cls", "mean")):
        a, b = ours[:, pool_index], theirs[:, pool_index]
        for name, middle in (("cosine", 0.0), ("centred cosine", b.mean(axis=0))):
            x, y = a - middle, b - middle
            cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
            print(f"{pool:5}{name:15} mean {cosines.mean():.6f}, worst {cosines.min():.6f}")


if __name__ == "__main__":
    main()
