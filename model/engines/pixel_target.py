"""Does a decoder predict pixels, or pixels normalised within each patch? Its predictions of the fixed images tell.

A checkpoint that does not say which is read as predicting pixels. If that is wrong, pictures are garbage, but nothing
fails. So both readings of the predictions are compared with the images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.engines.base import Engine
from model.engines.fixed_images import IMAGES, fixed_patches, visible_quarter
from model.masking import removed_flags

DOUBT = 0.75
"""The other target fits better if it leaves less than this share of what the target that was taken leaves unexplained.

The packaged model, which predicts pixels, leaves 0.07 of them and 0.57 of normalised pixels. After about 30
steps on normalised pixels the one of version 0.2.0 left 0.57 of those, and 0.91 of the pixels. Random weights leave 1
or more of either.
"""
OPTIONS = {True: "--norm-pix-loss", False: "--no-norm-pix-loss"}
WORDS = {True: "pixels normalised within each patch", False: "pixels"}


def doubt_target(reference: Engine) -> str | None:
    """A sentence if the predictions of a decoder whose target nobody has told fit the other target better.

    Args:
        reference: the model in eager float32, with the target that was assumed.
    """
    config = reference.info.config
    if not config.has_decoder:
        return None
    patches, visible = fixed_patches(config), visible_quarter(config, IMAGES)
    pixels, _ = reference.reconstruct(0, patches, visible)
    removed = np.stack([removed_flags(indices, config.num_patches) for indices in visible]).astype(bool)
    taken, other = compare_targets(patches, pixels, removed, config, reference.info.preprocessing)
    if other > DOUBT * taken:
        return None
    return (
        f"it does not tell what its decoder predicts; {WORDS[config.norm_pix_loss]} were assumed, but its predictions "
        f"look like {WORDS[not config.norm_pix_loss]}: {OPTIONS[not config.norm_pix_loss]} reads them so"
    )


def compare_targets(
    patches: Bytes,
    pixels: Bytes,
    removed: NDArray[np.bool_],
    config: MAEConfig,
    preprocessing: Preprocessing,
) -> tuple[float, float]:
    """How much of the images both readings of the predictions leave unexplained, as shares of their variance.

    The predictions are taken back out of the pixels. They are clipped there to 0..255, which is about -2 to 2.6 in
    standardised numbers: enough for either target.

    Args:
        patches: the images, uint8 [R, N, P].
        pixels: the decoder's pixels under the config's target, uint8 [R, N, P].
        removed: the patches that were predicted, [R, N].
        config: tells the target that was taken.
        preprocessing: gives the mean and deviation.

    Returns:
        The share under the config's target, and under the other one.
    """
    repeat = config.patch_size**2
    mean, std = (np.tile(np.array(values), repeat) for values in (preprocessing.mean, preprocessing.std))
    target, pred = ((array[removed] / 255 - mean) / std for array in (patches, pixels))  # [M, P]
    patch_mean, patch_std = target.mean(axis=1, keepdims=True), target.std(axis=1, ddof=1, keepdims=True) + 1e-3
    normalised = (target - patch_mean) / patch_std
    if config.norm_pix_loss:
        pred = (pred - patch_mean) / patch_std
    of_pixels = np.square(pred - target).mean() / np.square(target - target.mean(axis=0)).mean()
    of_normalised = np.square(pred - normalised).mean() / np.square(normalised).mean()
    shares = float(of_pixels), float(of_normalised)
    return shares[::-1] if config.norm_pix_loss else shares
