"""Requests for reconstructions: their masks, and the pixels that the decoder predicts.

A mask is drawn by a seed, listed as indices of patches, or painted as a picture; for routes and commands alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.config import MAEConfig
from model.masking import MaskError, choose_visible, new_seed, visible_without
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.parameters import ReconstructParameters

ChooseVisible = Callable[[DecodedImage], Indices]
"""Chooses which patches of a decoded image stay visible, int32 [K]."""
ChoosePasses = Callable[[DecodedImage], Sequence[Indices]]
"""Chooses which patches stay visible in each pass of a decoded image, int32 [K] with one K."""
RANDOM_MASK_PARAMETERS = ("mask_ratio", "seed", "strategy")
"""The parameters of a mask that is drawn by a seed."""


@dataclass(frozen=True)
class Reconstruction:
    """One image, and the decoder's prediction from its visible patches."""

    patches: Bytes
    """The image itself, uint8 [N, P]."""
    pixels: Bytes
    """Predicted pixels, uint8 [N, P]."""
    error: Floats
    """Squared error of each patch in the decoder's pixels, float32 [N]."""
    visible_indices: Indices
    """The visible patches, int32 [K]."""

    @property
    def loss(self) -> float:
        """Mean squared error over the removed patches."""
        removed = np.ones(len(self.error), dtype=bool)
        removed[self.visible_indices] = False
        return float(self.error[removed].mean())

    @property
    def removed_share(self) -> float:
        """Share of the patches that was removed."""
        return 1 - len(self.visible_indices) / len(self.error)


def choose_patches_to_remove(config: MAEConfig, parameters: ReconstructParameters) -> tuple[int | None, ChooseVisible]:
    """The seed (None if `patches` lists the mask), and a function that chooses the visible patches of an image.

    Raises:
        InvalidParameter: the parameters describe two masks, or a mask that removes no patch, every patch, or a patch
            that does not exist.
    """
    if parameters.patches is not None:
        _require_one_mask("patches", parameters)
        removed = [int(index) for index in parameters.patches.split(",")]
        listed = _choose_or_refuse("patches", lambda: visible_without(removed, config.num_patches))
        return None, lambda image: listed
    seed = new_seed() if parameters.seed is None else parameters.seed
    drawn = _choose_or_refuse(
        "mask_ratio", lambda: choose_visible(parameters.strategy, config.grid, parameters.mask_ratio, seed)
    )
    return seed, lambda image: drawn


def choose_patches_by_picture(
    config: MAEConfig, image_decoder: ImageDecoder, parameters: ReconstructParameters, picture: bytes, count: int
) -> ChooseVisible:
    """A function that chooses the patches of an image that a mask picture leaves visible.

    The function raises the errors of `ImageDecoder.read_mask`, and InvalidParameter for a mask that removes no patch or
    every patch.

    Args:
        config: of the model.
        image_decoder: decodes the picture, once the image is decoded.
        parameters: of the request.
        picture: an encoded image as large as the request's; patches that are more than half white are removed.
        count: the number of images in the request.

    Raises:
        InvalidParameter: the request also describes another mask, or has several images.
    """
    _require_one_mask("mask", parameters)
    if count > 1:
        raise InvalidParameter("a mask goes with one image, and this request has more", parameter="mask")
    return lambda image: _choose_or_refuse(
        "mask", lambda: visible_without(image_decoder.read_mask(picture, image), config.num_patches)
    )


def _require_one_mask(name: str, parameters: ReconstructParameters) -> None:
    """Refuses parameters that describe another mask than `name`: "patches", or "mask" for a mask picture."""
    if name == "mask" and parameters.patches is not None:
        raise InvalidParameter("patches and a mask picture both say which patches to remove", parameter="mask")
    for other in RANDOM_MASK_PARAMETERS:
        if other in parameters.model_fields_set:
            raise InvalidParameter(f"{name} says which patches to remove, so {other} cannot be given", parameter=other)


def _choose_or_refuse(parameter: str, choose: Callable[[], Indices]) -> Indices:
    """Runs `choose`; its MaskError becomes an InvalidParameter that names `parameter`."""
    try:
        return choose()
    except MaskError as error:
        raise InvalidParameter(f"{parameter}: {error}", parameter=parameter) from error
