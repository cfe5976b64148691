"""The gate before ready: does the compiled engine compute what eager float32 computes?

Plain cosine would be no test: the vectors of a masked autoencoder share one large common direction, beside which a
visibly wrong engine still scores 0.999999. So the mean over the images is subtracted first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import MAEConfig
from model.engines.base import Bytes, Engine, EngineBuildError, Floats, Indices, Parity, Precision
from model.masking import every_position, removed_flags, visible_positions

IMAGES = 8
MASK_RATIO = 0.75


@dataclass(frozen=True)
class Bar:
    """The least that an engine must reach."""

    cosine: float
    psnr_db: float
    loss_difference: float


# Float32 elsewhere differs by rounding alone, so its bar is close; half precision gets room for its ten bits.
BARS: dict[Precision, Bar] = {
    "fp32": Bar(cosine=0.999999, psnr_db=60.0, loss_difference=1e-3),
    "bf16": Bar(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "fp16": Bar(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
}


class ParityError(EngineBuildError):
    """The engine's numbers are not the model's: it must not serve."""


@dataclass(frozen=True)
class Answers:
    """What an engine says of the fixed images."""

    whole: Floats
    """[IMAGES, 2, D], every patch seen."""
    masked: Floats
    """[IMAGES, 2, D], a quarter of the patches seen."""
    pixels: Bytes | None
    """[IMAGES, N, P]."""
    error: Floats | None
    """[IMAGES, N]."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By name, those that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def answers(engine: Engine) -> Answers:
    """Runs the fixed images through `engine`, spread over all its lanes in batches of its preferred size."""
    config = engine.info.config
    patches, visible = fixed_patches(config), _visible(config)
    everything = np.repeat(every_position(config.num_patches)[None], IMAGES, axis=0)
    seen = np.take_along_axis(patches, visible[..., None], axis=1)
    whole, masked = np.empty((2, IMAGES, 2, config.embed_dim), dtype=np.float32)
    decodes = config.has_decoder
    pixels = np.empty_like(patches) if decodes else None
    error = np.empty(patches.shape[:2], dtype=np.float32) if decodes else None
    size = max(1, min(engine.preferred_batch, IMAGES // engine.lanes))
    for turn, start in enumerate(range(0, IMAGES, size)):
        lane, part = turn % engine.lanes, slice(start, start + size)
        whole[part] = engine.embed(lane, patches[part], everything[part])
        masked[part] = engine.embed(lane, seen[part], visible[part])
        if pixels is not None and error is not None:
            pixels[part], error[part] = engine.reconstruct(lane, patches[part], visible[part])
    return Answers(whole, masked, pixels, error)


def check(found: Answers, expected: Answers, config: MAEConfig, precision: Precision) -> Parity:
    """Compares `found` with `expected` (eager float32).

    Raises:
        ParityError: a figure under its bar, or not a number.
    """
    bar = BARS[precision]
    parity = measure(found, expected, config)
    if not parity.cosine >= bar.cosine:
        raise ParityError(
            f"embeddings differ from eager float32: centred cosine {parity.cosine:.6f}, at least {bar.cosine} is needed"
        )
    if parity.psnr_db is not None and not parity.psnr_db >= bar.psnr_db:
        raise ParityError(
            f"reconstructions differ from eager float32: PSNR {parity.psnr_db:.1f} dB, at least {bar.psnr_db} is needed"
        )
    if parity.loss_difference is not None and not parity.loss_difference <= bar.loss_difference:
        raise ParityError(
            f"the reconstruction loss differs from eager float32 by {parity.loss_difference:.2%}, "
            f"at most {bar.loss_difference:.2%} is allowed"
        )
    return parity


@np.errstate(invalid="ignore")  # infinities become NaN here, and NaN passes no bar
def measure(found: Answers, expected: Answers, config: MAEConfig) -> Parity:
    """The figures of `check`, without the bar."""
    pairs = ((found.whole, expected.whole), (found.masked, expected.masked))
    cosine = float(np.min([_centred_cosine(a, b) for a, b in pairs]))  # unlike min, np.min lets NaN through
    if found.pixels is None or found.error is None or expected.pixels is None or expected.error is None:
        return Parity(cosine=cosine)
    squared = np.square(found.pixels.astype(np.float64) - expected.pixels).mean(axis=(1, 2))
    psnr = np.minimum(99.0, 10 * np.log10(255**2 / np.maximum(squared, 1e-9))).min()
    removed = np.stack([removed_flags(row, config.num_patches) for row in _visible(config)])
    ours, theirs = ((error * removed).sum(axis=1) for error in (found.error, expected.error))
    return Parity(
        cosine=cosine, psnr_db=float(psnr), loss_difference=float(np.abs(ours / np.maximum(theirs, 1e-12) - 1).max())
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


def _visible(config: MAEConfig) -> Indices:
    """Where a quarter of the patches of each fixed image is seen, int32 [IMAGES, K]."""
    if config.num_patches < 2:
        return np.zeros((IMAGES, 1), dtype=np.int32)
    ratio = min(MASK_RATIO, 1 - 1 / config.num_patches)
    return np.stack([visible_positions("random", config.grid, ratio, seed) for seed in range(IMAGES)])


def _centred_cosine(found: Floats, expected: Floats) -> float:
    """Worst cosine over images and poolings of [IMAGES, 2, D] after subtracting the mean over the images.

    It is the expected vectors' mean that is subtracted from both: an engine whose vectors are all shifted by the same
    amount must not pass.
    """
    a, b = (x.astype(np.float64) - expected.astype(np.float64).mean(axis=0) for x in (found, expected))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / np.maximum(norms, 1e-30)).min())
