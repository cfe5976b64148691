"""Requests for reconstructions: their masks, and the pixels that the decoder predicts.

A mask is drawn by a seed, listed as indices of patches, or painted as a picture; for routes and commands alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.config import MAEConfig
from model.masking import MAX_SEED, MaskError, choose_visible, new_seed, removed_flags, visible_without
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.images import ImageRequest
from service.inference.passes import Inference, VisibleByPass
from service.inference.pipeline import Pipeline
from service.inference.queue import DecoderOutput
from service.parameters import ReconstructParameters

RANDOM_MASK_PARAMETERS = ("mask_ratio", "seed", "strategy", "draws")
"""The parameters of masks that are drawn by a seed."""


@dataclass(frozen=True)
class Reconstruction:
    """One image, and the decoder's prediction from its visible patches; or the mean of several predictions."""

    patches: Bytes
    """The image itself, uint8 [N, P]."""
    pixels: Bytes
    """Predicted pixels, uint8 [N, P]."""
    error: Floats
    """Squared error of each patch in the decoder's pixels, float32 [N]."""
    visible_indices: Indices
    """The visible patches, int32 [K]; of several predictions, those of the first."""
    spread: Floats | None = None
    """Standard deviation of each pixel over several predictions, see `mean_of_draws`, float32 [N, p * p]."""

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

    @property
    def patch_spread(self) -> Floats | None:
        """Spread of each patch, float32 [N]: the root of the mean square over its pixels."""
        return None if self.spread is None else np.sqrt(np.square(self.spread).mean(axis=1))


@dataclass(frozen=True)
class MaskPlan:
    """The masks by which each image of a request is reconstructed: one, or one per draw."""

    seeds: tuple[int, ...]
    """The seed of each mask; none if the request says which patches to remove."""
    visible_by_pass: VisibleByPass
    picture: bytes = b""
    """The picture that shows the mask; empty if there is none."""
    is_determined: bool = True
    """Whether the same request would get the same masks again: no seed was drawn for it."""

    @property
    def seed(self) -> int | None:
        """The seed of the first mask, if there is one."""
        return self.seeds[0] if self.seeds else None

    @property
    def draws(self) -> int:
        """The number of masks."""
        return len(self.seeds) or 1


def choose_patches_to_remove(config: MAEConfig, parameters: ReconstructParameters) -> MaskPlan:
    """The masks of a request: listed in `patches`, or drawn by `seed`, `seed` + 1 and so on (modulo 2^64).

    Raises:
        InvalidParameter: the parameters describe two masks, or a mask that removes no patch, every patch, or a patch
            that does not exist; or they ask for the spread of a single draw.
    """
    if parameters.view == "spread" and parameters.draws == 1:
        raise InvalidParameter("view: spread needs several draws, such as draws=8", parameter="view")
    if parameters.patches is not None:
        require_one_mask("patches", parameters)
        removed = [int(index) for index in parameters.patches.split(",")]
        listed = _choose_or_refuse("patches", lambda: visible_without(removed, config.num_patches))
        return MaskPlan((), [listed])
    first = new_seed() if parameters.seed is None else parameters.seed
    seeds = tuple((first + draw) & MAX_SEED for draw in range(parameters.draws))
    strategy, ratio = parameters.strategy, parameters.mask_ratio
    drawn = [_choose_or_refuse("mask_ratio", partial(choose_visible, strategy, config.grid, ratio, s)) for s in seeds]
    return MaskPlan(seeds, drawn, is_determined=parameters.seed is not None)


async def reconstruct_images(pipeline: Pipeline, request: ImageRequest, plan: MaskPlan) -> list[list[Reconstruction]]:
    """Reconstructs each image by each of the masks.

    An image is decoded once, and each of its passes counts as an image in the queue.

    Returns:
        The reconstructions of each image that is not left out, in the order of the masks.

    Raises:
        NoDecoder: the model cannot reconstruct.
        ServiceError: an image is refused, the queue is full, or the engine has failed.
    """
    pipeline.require_decoder()
    inference = Inference("reconstruct", plan.visible_by_pass, plan.picture, plan.is_determined, keeps_patches=True)
    by_image = []
    for image in await pipeline.infer(request, inference):
        assert image.patches is not None
        reconstructions = []
        for visible_indices, output in zip(image.visible_indices, image.outputs, strict=True):
            assert isinstance(output, DecoderOutput)
            reconstructions.append(Reconstruction(image.patches, output.pixels, output.error, visible_indices))
        by_image.append(reconstructions)
    return by_image


def mean_of_draws(draws: Sequence[Reconstruction]) -> Reconstruction:
    """The mean of several reconstructions of one image, and how far they lie apart; a single one as it is.

    A patch counts in the draws that remove it, since a decoder has not learned to predict what the encoder has seen.
    `pixels` and `error` are means over these draws; for a patch that none of them removes, over all draws. `spread` is
    the standard deviation over them (n - 1 in the denominator); the squares of the three channels are averaged. The
    spread of a patch that fewer than two draws remove is NaN.

    Args:
        draws: reconstructions of one image; at most 64, so that sums of squares fit into 32 bits.
    """
    if len(draws) == 1:
        return draws[0]
    first = draws[0]
    removes = np.array(
        [removed_flags(draw.visible_indices, len(first.patches)) for draw in draws], dtype=bool
    )  # [n, N]
    counted = np.where(removes.any(axis=0), removes, True)
    counts = counted.sum(axis=0)[:, None]  # [N, 1]
    total = np.zeros(first.pixels.shape, dtype=np.uint32)  # [N, P]
    squares = np.zeros_like(total)
    for draw, patches in zip(draws, counted, strict=True):
        pixels = draw.pixels[patches].astype(np.uint32)
        total[patches] += pixels
        squares[patches] += pixels * pixels
    mean = total / counts
    with np.errstate(divide="ignore", invalid="ignore"):  # a patch that counts once has no variance: 0 / 0
        variance = (squares - total * mean) / (counts - 1)
    variance[removes.sum(axis=0) < 2] = np.nan
    by_pixel = np.maximum(variance, 0).reshape(len(mean), -1, 3).mean(axis=2)
    errors = np.array([draw.error for draw in draws], dtype=np.float64)
    return Reconstruction(
        first.patches,
        mean.round().astype(np.uint8),
        ((errors * counted).sum(axis=0) / counts[:, 0]).astype(np.float32),
        first.visible_indices,
        np.sqrt(by_pixel).astype(np.float32),
    )


def choose_patches_by_picture(
    config: MAEConfig, image_decoder: ImageDecoder, parameters: ReconstructParameters, picture: bytes, count: int
) -> MaskPlan:
    """The mask that a picture shows.

    To choose the patches of an image raises the errors of `ImageDecoder.read_mask`, and InvalidParameter for a mask
    that removes no patch or every patch.

    Args:
        config: of the model.
        image_decoder: decodes the picture, once the image is decoded.
        parameters: of the request.
        picture: an encoded image as large as the request's; patches that are more than half white are removed.
        count: the number of images in the request.

    Raises:
        InvalidParameter: the request also describes another mask, or has several images.
    """
    require_one_mask("mask", parameters)
    if count > 1:
        raise InvalidParameter("a mask goes with one image, and this request has more", parameter="mask")

    def choose(image: DecodedImage, reserved: int) -> Indices:
        removed = image_decoder.read_mask(picture, image, reserved, may_be_long=reserved > 0)
        return _choose_or_refuse("mask", lambda: visible_without(removed, config.num_patches))

    return MaskPlan((), choose, picture)


def require_one_mask(name: str, parameters: ReconstructParameters) -> None:
    """Refuses parameters that describe another mask than `name`: "patches", or "mask" for a mask picture.

    A parameter with its default value asks for nothing: forms such as that of /docs send all of them.
    """
    if name == "mask" and parameters.patches is not None:
        raise InvalidParameter("patches and a mask picture both say which patches to remove", parameter="mask")
    for other in RANDOM_MASK_PARAMETERS:
        if getattr(parameters, other) != ReconstructParameters.model_fields[other].default:
            raise InvalidParameter(f"{name} says which patches to remove, so {other} cannot be given", parameter=other)


def _choose_or_refuse(parameter: str, choose: Callable[[], Indices]) -> Indices:
    """Runs `choose`; its MaskError becomes an InvalidParameter that names `parameter`."""
    try:
        return choose()
    except MaskError as error:
        raise InvalidParameter(f"{parameter}: {error}", parameter=parameter) from error
