"""Parity: does the compiled engine compute what eager float32 computes? Checked before an engine serves.

Plain cosine would be no test: the vectors of a masked autoencoder share one large common direction, beside which a
visibly wrong engine still scores 0.999999. So the mean over the images is subtracted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats
from model.config import MAEConfig
from model.engines.base import ComputedPrecision, Engine, EngineBuildError, Parity
from model.engines.fixed_images import visible_quarter
from model.engines.outputs import EngineOutputs, collect_outputs, collect_padded_outputs
from model.masking import removed_flags


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may lie from eager float32: see `Parity`."""

    cosine: float
    """The least centred cosine."""
    psnr_db: float
    """The least PSNR of reconstructed pixels, in decibels."""
    loss_difference: float
    """The largest relative difference of the loss."""
    averaged: bool = False
    """Whether `cosine` applies to the mean over the images; otherwise it applies to the worst image."""


# Float32 on other hardware differs by rounding alone, so its tolerance is small. Half precision has ten bits, or fewer.
# int8 is accurate except for images near the mean embedding, so its tolerance applies to the average.
TOLERANCES: dict[ComputedPrecision, Tolerance] = {
    "fp32": Tolerance(cosine=0.999999, psnr_db=60.0, loss_difference=1e-3),
    "bf16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "emulated bf16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "fp16": Tolerance(cosine=0.999, psnr_db=40.0, loss_difference=2e-2),
    "int8": Tolerance(cosine=0.99, psnr_db=30.0, loss_difference=5e-2, averaged=True),
}


def tolerance_for(
    computes: ComputedPrecision, cosine: float | None = None, psnr_db: float | None = None, loss: float | None = None
) -> Tolerance:
    """The tolerance of an engine that computes in `computes`; the operator's figures replace the defaults.

    The computed precision counts, not the one asked for: float32 under the name of bf16 must be as close as float32.
    """
    default = TOLERANCES[computes]
    return Tolerance(
        default.cosine if cosine is None else cosine,
        default.psnr_db if psnr_db is None else psnr_db,
        default.loss_difference if loss is None else loss,
        default.averaged,
    )


class ParityError(EngineBuildError):
    """The engine's numbers are not the model's: it must not serve."""


def check_parity(
    engine: Engine, expected: EngineOutputs, tolerance: Tolerance, batch_sizes: Sequence[int | None] = (None,)
) -> Parity:
    """Compares `engine` with eager float32 in batches of each of `batch_sizes`, and returns the worst of each figure.

    Args:
        engine: the engine to check.
        expected: the outputs of eager float32.
        tolerance: how far the engine may lie from them.
        batch_sizes: images per batch; None is the engine's preferred batch.

    Raises:
        ParityError: a figure is outside the tolerance, or not a number.
    """
    config = engine.info.config
    figures = [
        require_tolerance(
            measure_parity(collect_outputs(engine, size), expected, config),
            tolerance,
            "" if size is None else f" in batches of {size}",
        )
        for size in batch_sizes
    ]
    if engine.info.mixes:
        padded = measure_parity(collect_padded_outputs(engine), expected, config)
        figures.append(require_tolerance(padded, tolerance, " in padded batches"))
    return Parity(
        cosine=min(parity.cosine for parity in figures),
        mean_cosine=min((p.mean_cosine for p in figures if p.mean_cosine is not None), default=None),
        psnr_db=min((p.psnr_db for p in figures if p.psnr_db is not None), default=None),
        loss_difference=max((p.loss_difference for p in figures if p.loss_difference is not None), default=None),
    )


def require_tolerance(parity: Parity, tolerance: Tolerance, where: str = "") -> Parity:
    """Returns `parity` if it is within the tolerance; `where` names the outputs in the message (" in padded batches").

    Raises:
        ParityError: a figure is outside the tolerance, or not a number.
    """
    averaged = tolerance.averaged
    cosine, kind = (parity.mean_cosine, "mean centred cosine") if averaged else (parity.cosine, "centred cosine")
    if cosine is None or not cosine >= tolerance.cosine:
        reached = "unknown" if cosine is None else f"{cosine:.6f}"
        raise ParityError(
            f"embeddings{where} differ from eager float32: {kind} {reached}, "
            f"at least {tolerance.cosine} is needed (PARITY_COSINE)"
        )
    if parity.psnr_db is not None and not parity.psnr_db >= tolerance.psnr_db:
        raise ParityError(
            f"reconstructions{where} differ from eager float32: PSNR {parity.psnr_db:.1f} dB, "
            f"at least {tolerance.psnr_db} is needed (PARITY_PSNR_DB)"
        )
    if parity.loss_difference is not None and not parity.loss_difference <= tolerance.loss_difference:
        raise ParityError(
            f"the reconstruction loss{where} differs from eager float32 by {parity.loss_difference:.2%}, "
            f"at most {tolerance.loss_difference:.2%} is allowed (PARITY_LOSS)"
        )
    return parity


@np.errstate(invalid="ignore")  # infinities become NaN here, and NaN is outside every tolerance
def measure_parity(outputs: EngineOutputs, expected: EngineOutputs, config: MAEConfig) -> Parity:
    """Measures how far `outputs` lie from `expected`, which repeats where it holds fewer images."""
    count = len(expected.whole)
    order = np.arange(len(outputs.whole)) % count
    pairs = ((outputs.whole, expected.whole), (outputs.masked, expected.masked))
    cosines = np.stack([_centred_cosines(a, b[order], b.mean(axis=0, dtype=np.float64)) for a, b in pairs])
    # np.min returns NaN if there is one; Python's min might not
    cosine, mean_cosine = float(np.min(cosines)), float(np.min(cosines.mean(axis=1)))
    if outputs.pixels is None or outputs.error is None or expected.pixels is None or expected.error is None:
        return Parity(cosine=cosine, mean_cosine=mean_cosine)
    # One image at a time: a large batch of them in double precision would take gigabytes.
    pixel_pairs = zip(outputs.pixels, expected.pixels[order], strict=True)
    squared = np.array([np.square(ours.astype(np.float64) - theirs).mean() for ours, theirs in pixel_pairs])
    psnr = np.minimum(99.0, 10 * np.log10(255**2 / np.maximum(squared, 1e-9))).min()
    removed = np.stack([removed_flags(visible, config.num_patches) for visible in visible_quarter(config, count)])
    ours, theirs = ((error * removed[order]).sum(axis=1) for error in (outputs.error, expected.error[order]))
    return Parity(
        cosine=cosine,
        mean_cosine=mean_cosine,
        psnr_db=float(psnr),
        loss_difference=float(np.abs(ours / np.maximum(theirs, 1e-12) - 1).max()),
    )


def _centred_cosines(outputs: Floats, expected: Floats, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines [R, 2] of the vectors of [R, 2, D] after `mean` [2, D] is subtracted from both.

    It is the expected vectors' mean that is subtracted from both: an engine whose vectors are all shifted by the same
    amount must not pass.
    """
    a, b = (x.astype(np.float64) - mean for x in (outputs, expected))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=-1) / np.maximum(norms, 1e-30)
    return cosines
