"""How far bf16 and int8 are from float32 on photographs: the tables of model/engines/README.md.

    .venv/bin/python -m tests.benchmarks.precisions TEST --images 500 [--weights FILE] [--calibrate TRAIN]

The pooled vectors of photographs of TEST are compared with those of the same engine in float32, whole and with a
quarter of the patches visible: by the centred cosine, and by the nearest neighbour among the other photographs, which
is the one with the largest centred cosine. Reconstructions from a quarter of the patches are compared by PSNR, and by
the relative difference of the loss. int8 is the engine that a server takes, or with --calibrate one that is calibrated
on photographs of TRAIN. A line says which precision the CPU really computes, and its parity on the check's drawn images
and on photographs held out.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX
from model.engines.base import Engine, Parity
from model.engines.build import build
from model.engines.fixed_images import visible_quarter
from model.images.folders import find_images
from model.images.open_image import open_image
from model.images.preprocess import patches_of
from model.masking import all_indices, removed_flags
from service.settings import load_settings


def embed(engine: Engine, patches: Bytes, visible_indices: Indices) -> Floats:
    """Pooled vectors float32 [R, 2, D] of patches uint8 [R, N, P], of which int32 [R, K] are visible."""
    size = engine.info.preferred_batch
    visible_patches = np.take_along_axis(patches, visible_indices[..., None], axis=1)
    starts = range(0, len(patches), size)
    return np.concatenate(
        [
            engine.embed(0, visible_patches[start : start + size], visible_indices[start : start + size])
            for start in starts
        ]
    )


def reconstruct(engine: Engine, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
    """Pixels uint8 [R, N, P] and the loss [R] over the patches that are not visible."""
    size = engine.info.preferred_batch
    parts = [
        engine.reconstruct(0, patches[start : start + size], visible_indices[start : start + size])
        for start in range(0, len(patches), size)
    ]
    pixels, error = (np.concatenate(part) for part in zip(*parts, strict=True))
    removed = np.stack([removed_flags(visible, patches.shape[1]) for visible in visible_indices])
    return pixels, (error * removed).sum(axis=1)


def centre(vectors: Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors [R, D] minus `mean`, scaled to length 1."""
    centred = vectors.astype(np.float64) - mean
    unit: NDArray[np.float64] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit


def nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the vector with the largest cosine, of unit vectors [R, D], that is not the vector itself."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)


def describe(vectors: Floats, expected: Floats) -> str:
    """Mean and worst centred cosine, and the share of equal neighbours, of vectors [R, D] beside those of float32."""
    mean = expected.mean(axis=0, dtype=np.float64)
    ours, theirs = centre(vectors, mean), centre(expected, mean)
    cosines = (ours * theirs).sum(axis=1)
    same = np.mean(nearest(ours) == nearest(theirs))
    return f"{cosines.mean():.5f} ({cosines.min():.5f}), same neighbour {same:.1%}"


def describe_reconstructions(ours: tuple[Bytes, Floats], theirs: tuple[Bytes, Floats]) -> str:
    """PSNR of the pixels in decibels, and the relative difference of the loss: mean and worst."""
    squared = np.array([np.square(a.astype(np.float64) - b).mean() for a, b in zip(ours[0], theirs[0], strict=True)])
    psnr = 10 * np.log10(255**2 / np.maximum(squared, 1e-9))
    difference = np.abs(ours[1] / theirs[1] - 1)
    return f"PSNR {psnr.mean():.1f} ({psnr.min():.1f}) dB, loss {difference.mean():.2%} ({difference.max():.2%})"


def describe_parity(parity: Parity) -> str:
    """The mean centred cosine (and the worst), the least PSNR and the largest difference of the loss."""
    text = f"{parity.mean_cosine:.5f} ({parity.cosine:.5f})"
    if parity.psnr_db is not None and parity.loss_difference is not None:
        text += f", PSNR {parity.psnr_db:.1f} dB, loss {parity.loss_difference:.2%}"
    return text


def read(paths: Sequence[str], engine: Engine) -> Bytes:
    """Photographs as patches uint8 [R, N, P]."""
    info = engine.info
    return np.stack([patches_of(open_image(path), info.config, info.preprocessing) for path in paths])


def main() -> None:
    """Prints a line per precision, K and pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--calibrate", type=Path, help="photographs to calibrate int8 with, in place of the packaged ones"
    )
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()

    def build_engine(precision: str, calibrate: Path | None = None) -> Engine:
        return build(load_settings(weights=options.weights, precision=precision).engine, print, calibrate).engine

    reference = build_engine("fp32")
    paths = sorted(find_images([options.folder]).images)
    random.Random(0).shuffle(paths)
    patches = read(paths[: options.images], reference)
    config = reference.info.config
    visible = [
        np.repeat(all_indices(config.num_patches)[None], len(patches), axis=0),
        visible_quarter(config, len(patches)),
    ]
    expected = [embed(reference, patches, indices) for indices in visible]
    pictures = reconstruct(reference, patches, visible[1]) if config.has_decoder else None
    print(f"{reference.info.model_id}, {len(patches)} photographs")
    for precision in ("bf16", "int8"):
        engine = build_engine(precision, options.calibrate if precision == "int8" else None)
        info, quantisation = engine.info, engine.info.quantisation
        assert info.parity is not None
        print(f"{precision}: computes {info.computes}; drawn images {describe_parity(info.parity)}")
        if quantisation:
            print(
                f"    {quantisation.photographs} photographs to calibrate; "
                f"{quantisation.held_out} held out {describe_parity(quantisation.parity)}"
            )
        for indices, theirs in zip(visible, expected, strict=True):
            ours = embed(engine, patches, indices)
            for pool, index in POOL_INDEX.items():
                print(f"    K = {indices.shape[1]:3}, {pool:4}: {describe(ours[:, index], theirs[:, index])}")
        if pictures is not None:
            print(f"    {describe_reconstructions(reconstruct(engine, patches, visible[1]), pictures)}", flush=True)


if __name__ == "__main__":
    main()
