"""The gate before ready: does the compiled engine compute what eager float32 computes?

Plain cosine would be no test: the vectors of a masked autoencoder share one large common direction, beside which a
visibly wrong engine still scores 0.999999. So the mean over the images is subtracted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.config import MAEConfig
from model.engines.base import ComputedPrecision, Engine, EngineBuildError, Parity, gather_visible
from model.masking import PAD, all_indices, choose_visible, removed_flags

IMAGES = 8
MASK_RATIO = 0.75


@dataclass(frozen=True)
class Tolerance:
    """The least that an engine must reach, and the most that its loss may differ: see `Parity`."""

    cosine: float
    psnr_db: float
    loss_difference: float
    averaged: bool = False
    """Whether the cosine to be reached is the mean over the images, not that of the worst."""


# Float32 elsewhere differs by rounding alone, so its bar is close; half precision gets room for its ten bits. Eight
# bits serve all images but a few very well, and those few, near the mean of all, less so: the average is held to it.
BARS: dict[ComputedPrecision, Tolerance] = {
    "fp32": Tolerance(cosine=0.999999, psnr_db=60.0, loss_difference=1e-3),
    "bf16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "emulated bf16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "fp16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "int8": Tolerance(cosine=0.99, psnr_db=30.0, loss_difference=5e-2, averaged=True),
}


def tolerance_for(
    precision: ComputedPrecision, cosine: float | None = None, psnr_db: float | None = None, loss: float | None = None
) -> Tolerance:
    """The bar of a precision, with what the operator has set in its place."""
    own = BARS[precision]
    return Tolerance(
        own.cosine if cosine is None else cosine,
        own.psnr_db if psnr_db is None else psnr_db,
        own.loss_difference if loss is None else loss,
        own.averaged,
    )


class ParityError(EngineBuildError):
    """The engine's numbers are not the model's: it must not serve."""


@dataclass(frozen=True)
class ReferenceOutputs:
    """What an engine says of some images, R rows of them: see `answers`."""

    whole: Floats
    """[R, 2, D], every patch seen."""
    masked: Floats
    """[R, 2, D], a quarter of the patches seen."""
    pixels: Bytes | None
    """[R, N, P]."""
    error: Floats | None
    """[R, N]."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By name, those that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def answers(engine: Engine, size: int | None = None, images: Bytes | None = None) -> ReferenceOutputs:
    """Runs images through `engine` in batches of `size`, spread over all its lanes.

    Rows are the images in order, over and over where batches or lanes are more than there are images.

    Args:
        engine: what to ask.
        size: images in a batch; by default what the engine prefers, at most all of them at once.
        images: uint8 [R, N, P]; the fixed images by default.
    """
    config = engine.info.config
    patches = fixed_patches(config) if images is None else images
    count = len(patches)
    size = size or max(1, min(engine.preferred_batch, count // engine.lanes))
    order = np.arange(max(count, size * engine.lanes)) % count
    visible = quarter_seen(config, count)
    everything = np.repeat(all_indices(config.num_patches)[None], count, axis=0)
    seen = np.take_along_axis(patches, visible[..., None], axis=1)
    decodes = config.has_decoder
    whole, masked, pixels, error = [], [], [], []
    for turn, start in enumerate(range(0, len(order), size)):
        lane, part = turn % engine.lanes, order[start : start + size]
        whole.append(engine.embed(lane, patches[part], everything[part]))
        masked.append(engine.embed(lane, seen[part], visible[part]))
        if decodes:
            painted, squared = engine.reconstruct(lane, patches[part], visible[part])
            pixels.append(painted)
            error.append(squared)
    return ReferenceOutputs(
        np.concatenate(whole),
        np.concatenate(masked),
        np.concatenate(pixels) if decodes else None,
        np.concatenate(error) if decodes else None,
    )


def mixed_answers(engine: Engine) -> ReferenceOutputs:
    """The fixed images in pairs that share a batch: one whole, the next seen through a quarter of its patches."""
    config = engine.info.config
    patches, visible = fixed_patches(config), quarter_seen(config, IMAGES)
    padded = np.full((IMAGES, config.num_patches), PAD, dtype=np.int32)
    padded[:, : visible.shape[1]] = visible
    everything = np.repeat(all_indices(config.num_patches)[None], IMAGES, axis=0)
    whole, masked, pixels, error = [], [], [], []
    for first in range(IMAGES):
        second = (first + 1) % IMAGES
        visible_indices = np.stack([everything[first], padded[second]])
        pair = patches[[first, second]]
        pooled = engine.embed(first % engine.lanes, gather_visible(pair, visible_indices), visible_indices)
        whole.append(pooled[0])
        masked.append(pooled[1])
        if config.has_decoder:
            painted, squared = engine.reconstruct(first % engine.lanes, pair, visible_indices)
            pixels.append(painted[1])
            error.append(squared[1])
    order = np.arange(-1, IMAGES - 1)  # the second of a pair is one further on
    return ReferenceOutputs(
        np.stack(whole),
        np.stack(masked)[order],
        np.stack(pixels)[order] if pixels else None,
        np.stack(error)[order] if error else None,
    )


def check_parity(
    engine: Engine, expected: ReferenceOutputs, bar: Tolerance, sizes: Sequence[int | None] = (None,)
) -> Parity:
    """Compares `engine` with eager float32 in batches of each of `sizes`, and returns the worst of each figure.

    Raises:
        ParityError: a figure under its bar, or not a number.
    """
    config = engine.info.config
    found = [check(answers(engine, size), expected, config, bar, size) for size in sizes]
    if engine.info.mixes:
        found.append(require(measure(mixed_answers(engine), expected, config), bar, " in mixed batches"))
    psnr = [parity.psnr_db for parity in found if parity.psnr_db is not None]
    loss = [parity.loss_difference for parity in found if parity.loss_difference is not None]
    means = [parity.mean_cosine for parity in found if parity.mean_cosine is not None]
    return Parity(
        cosine=min(parity.cosine for parity in found),
        mean_cosine=min(means, default=None),
        psnr_db=min(psnr, default=None),
        loss_difference=max(loss, default=None),
    )


def check(
    found: ReferenceOutputs, expected: ReferenceOutputs, config: MAEConfig, bar: Tolerance, size: int | None = None
) -> Parity:
    """Compares `found` with `expected` (eager float32); `size` is the batch, for the message.

    Raises:
        ParityError: a figure under its bar, or not a number.
    """
    return require(measure(found, expected, config), bar, "" if size is None else f" in batches of {size}")


def require(parity: Parity, bar: Tolerance, where: str = "") -> Parity:
    """Holds figures to a bar; `where` says in the message what they are of.

    Raises:
        ParityError: a figure under its bar, or not a number.
    """
    cosine, kind = (parity.mean_cosine, "mean centred cosine") if bar.averaged else (parity.cosine, "centred cosine")
    if cosine is None or not cosine >= bar.cosine:
        reached = "unknown" if cosine is None else f"{cosine:.6f}"
        raise ParityError(
            f"embeddings{where} differ from eager float32: {kind} {reached}, "
            f"at least {bar.cosine} is needed (PARITY_COSINE)"
        )
    if parity.psnr_db is not None and not parity.psnr_db >= bar.psnr_db:
        raise ParityError(
            f"reconstructions{where} differ from eager float32: PSNR {parity.psnr_db:.1f} dB, "
            f"at least {bar.psnr_db} is needed (PARITY_PSNR_DB)"
        )
    if parity.loss_difference is not None and not parity.loss_difference <= bar.loss_difference:
        raise ParityError(
            f"the reconstruction loss{where} differs from eager float32 by {parity.loss_difference:.2%}, "
            f"at most {bar.loss_difference:.2%} is allowed (PARITY_LOSS)"
        )
    return parity


@np.errstate(invalid="ignore")  # infinities become NaN here, and NaN passes no bar
def measure(found: ReferenceOutputs, expected: ReferenceOutputs, config: MAEConfig) -> Parity:
    """The figures of `check`, without the bar."""
    count = len(expected.whole)
    order = np.arange(len(found.whole)) % count
    pairs = ((found.whole, expected.whole), (found.masked, expected.masked))
    cosines = np.stack([_centred_cosines(a, b[order], b.mean(axis=0, dtype=np.float64)) for a, b in pairs])
    # unlike min, np.min lets NaN through
    cosine, mean_cosine = float(np.min(cosines)), float(np.min(cosines.mean(axis=1)))
    if found.pixels is None or found.error is None or expected.pixels is None or expected.error is None:
        return Parity(cosine=cosine, mean_cosine=mean_cosine)
    # One image at a time: a large batch of them in double precision would take gigabytes.
    pairs_of_pixels = zip(found.pixels, expected.pixels[order], strict=True)
    squared = np.array([np.square(ours.astype(np.float64) - theirs).mean() for ours, theirs in pairs_of_pixels])
    psnr = np.minimum(99.0, 10 * np.log10(255**2 / np.maximum(squared, 1e-9))).min()
    removed = np.stack([removed_flags(row, config.num_patches) for row in quarter_seen(config, count)])
    ours, theirs = ((error * removed[order]).sum(axis=1) for error in (found.error, expected.error[order]))
    return Parity(
        cosine=cosine,
        mean_cosine=mean_cosine,
        psnr_db=float(psnr),
        loss_difference=float(np.abs(ours / np.maximum(theirs, 1e-12) - 1).max()),
    )


def fixed_patches(config: MAEConfig) -> Bytes:
    """The fixed images, uint8 [IMAGES, N, P]: smooth colours, edges and grain, drawn from raw PCG64 outputs."""
    side, p, grid = config.image_size, config.patch_size, config.grid
    rows, columns = np.mgrid[0:side, 0:side] / side
    images = []
    for seed in range(IMAGES):
        bits = np.random.PCG64(seed)
        draw = (bits.random_raw(3 * 6 * 3) >> 11).reshape(3, 6, 3) * 2.0**-53
        waves = np.zeros((side, side, 3))
        for channel, channel_waves in enumerate(draw):
            for order, (across, down, phase) in enumerate(channel_waves, start=1):
                angle = 2 * np.pi * (order * (across - 0.5) * columns + order * (down - 0.5) * rows + phase)
                # The higher half as squares: photographs have edges, and edges are what goes wrong.
                waves[..., channel] += (np.cos(angle) if order < 4 else np.sign(np.cos(angle))) / order
        grain = (bits.random_raw(side * side) >> 60).astype(np.float64).reshape(side, side, 1) - 7.5
        images.append(np.clip(128 + 55 * waves + grain, 0, 255).astype(np.uint8))
    stacked = np.stack(images).reshape(IMAGES, grid, p, grid, p, 3)
    return np.ascontiguousarray(stacked.transpose(0, 1, 3, 2, 4, 5)).reshape(IMAGES, grid * grid, -1)


def quarter_seen(config: MAEConfig, count: int, first_seed: int = 0) -> Indices:
    """Where a quarter of the patches of each of `count` images is seen, int32 [count, K]."""
    if config.num_patches < 2:
        return np.zeros((count, 1), dtype=np.int32)
    ratio = min(MASK_RATIO, 1 - 1 / config.num_patches)
    return np.stack([choose_visible("random", config.grid, ratio, first_seed + n) for n in range(count)])


def _centred_cosines(found: Floats, expected: Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines [R, 2] of the vectors of [R, 2, D] after `mean` [2, D] is subtracted from both.

    It is the expected vectors' mean that is subtracted from both: an engine whose vectors are all shifted by the same
    amount must not pass.
    """
    a, b = (x.astype(np.float64) - mean for x in (found, expected))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=-1) / np.maximum(norms, 1e-30)
    return cosines
