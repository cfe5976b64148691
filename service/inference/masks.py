"""Which patches a request removes or keeps: parameters -> a seed and positions, for routes and commands alike."""

from __future__ import annotations

from collections.abc import Callable

from model.arrays import Indices
from model.config import MAEConfig
from model.masking import MaskError, choose_visible, new_seed, visible_without
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.pipeline import ChooseVisible
from service.parameters import ReconstructParameters

OF_A_DRAWN_MASK = {"mask_ratio", "strategy", "seed"}


def choose_removed(
    config: MAEConfig, decoder: ImageDecoder, parameters: ReconstructParameters, drawn: bytes | None, count: int
) -> tuple[int | None, ChooseVisible]:
    """The seed if there is one, and how a decoded image gets its visible patches.

    Args:
        config: of the model.
        decoder: reads `drawn`.
        parameters: of the request.
        drawn: a mask as a picture, white where patches are removed.
        count: images of the request.

    Raises:
        InvalidParameter: two masks at once, or one that removes nothing or everything.
    """
    given = [name for name, there in (("patches", parameters.patches), ("mask", drawn)) if there is not None]
    if given:
        for other in (*given[1:], *sorted(OF_A_DRAWN_MASK & parameters.model_fields_set)):
            raise InvalidParameter(f"{given[0]} says which patches to remove: {other} cannot too", parameter=other)
    if drawn is not None:
        if count > 1:
            raise InvalidParameter("a mask goes with one image, and there are more", parameter="mask")

        def place_drawn(decoded: DecodedImage) -> Indices:
            return _positions("mask", lambda: visible_without(decoder.removed_by(drawn, decoded), config.num_patches))

        return None, place_drawn
    if parameters.patches is not None:
        removed = [int(index) for index in parameters.patches.split(",")]
        visible_indices = _positions("patches", lambda: visible_without(removed, config.num_patches))
        return None, lambda decoded: visible_indices
    seed = new_seed() if parameters.seed is None else parameters.seed
    visible_indices = _positions(
        "mask_ratio", lambda: choose_visible(parameters.strategy, config.grid, parameters.mask_ratio, seed)
    )
    return seed, lambda decoded: visible_indices


def _positions(parameter: str, make: Callable[[], Indices]) -> Indices:
    try:
        return make()
    except MaskError as error:
        raise InvalidParameter(f"{parameter}: {error}", parameter=parameter) from error
