"""The parameters of a request for reconstruction -> the patches that the encoder sees, for routes and commands alike.

A mask is drawn by a seed, listed as the indices of patches, or painted as a mask picture.
"""

from __future__ import annotations

from collections.abc import Callable

from model.arrays import Indices
from model.config import MAEConfig
from model.masking import MaskError, choose_visible, new_seed, visible_without
from service.errors import InvalidParameter
from service.inference.image_decoder import ImageDecoder
from service.inference.pipeline import ChooseVisible
from service.parameters import ReconstructParameters

BY_SEED = ("mask_ratio", "seed", "strategy")
"""The parameters of a mask that is drawn by a seed."""


def choose_patches_to_remove(config: MAEConfig, parameters: ReconstructParameters) -> tuple[int | None, ChooseVisible]:
    """The seed (None if `patches` lists the mask) and a function that gives any decoded image its visible patches.

    Raises:
        InvalidParameter: two masks are described, or one that removes no patch, every patch, or one that is not there.
    """
    if parameters.patches is not None:
        _require_one_mask("patches", parameters)
        removed = [int(index) for index in parameters.patches.split(",")]
        listed = _naming("patches", lambda: visible_without(removed, config.num_patches))
        return None, lambda image: listed
    seed = new_seed() if parameters.seed is None else parameters.seed
    drawn = _naming("mask_ratio", lambda: choose_visible(parameters.strategy, config.grid, parameters.mask_ratio, seed))
    return seed, lambda image: drawn


def choose_patches_by_picture(
    config: MAEConfig, image_decoder: ImageDecoder, parameters: ReconstructParameters, picture: bytes, count: int
) -> ChooseVisible:
    """A function that gives a decoded image the patches that a mask picture leaves visible.

    The function raises as `ImageDecoder.removed_by`, and InvalidParameter for a mask of no patch or of every patch.

    Args:
        config: of the model.
        image_decoder: decodes the picture, once the image is decoded.
        parameters: of the request.
        picture: an encoded image as large as the request's; patches that are more than half white are removed.
        count: the number of images in the request.

    Raises:
        InvalidParameter: the request describes another mask besides, or has several images.
    """
    _require_one_mask("mask", parameters)
    if count > 1:
        raise InvalidParameter("a mask goes with one image, and this request has more", parameter="mask")
    return lambda image: _naming(
        "mask", lambda: visible_without(image_decoder.removed_by(picture, image), config.num_patches)
    )


def _require_one_mask(name: str, parameters: ReconstructParameters) -> None:
    """Refuses every description of a mask but the one by `name`: "patches", or "mask" for a mask picture."""
    if name == "mask" and parameters.patches is not None:
        raise InvalidParameter("patches and a mask picture both say which patches to remove", parameter="mask")
    for other in BY_SEED:
        if other in parameters.model_fields_set:
            raise InvalidParameter(f"{name} says which patches to remove, so {other} cannot be given", parameter=other)


def _naming(parameter: str, choose: Callable[[], Indices]) -> Indices:
    """Runs `choose`; its MaskError becomes an InvalidParameter that names `parameter`."""
    try:
        return choose()
    except MaskError as error:
        raise InvalidParameter(f"{parameter}: {error}", parameter=parameter) from error
