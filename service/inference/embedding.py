"""Requests for embeddings: which patches are encoded, which pool is taken, how vectors are finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np

from model.arrays import Floats, Indices
from model.checkpoints.heads import POOL_INDEX, Heads, Whitening, why_no_cls
from model.config import MAEConfig
from model.engines.base import EngineInfo
from model.masking import MaskError, all_indices, new_seed, random_visible, visible_inside
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage
from service.inference.images import ImageRequest
from service.inference.passes import Inference
from service.inference.pipeline import Pipeline
from service.inference.queue import Operation
from service.parameters import EmbedParameters, Pool


@dataclass(frozen=True)
class EmbeddingPlan:
    """How the images of one request are embedded, for routes and commands alike."""

    parameters: EmbedParameters
    """What is done: at first what was asked for; `degrade` and `encode_inside` change it."""
    seed: int | None
    """The seed that chose the patches; None if every patch is encoded, or those of a region."""
    visible_indices: Indices
    """The patches that are encoded, int32 [K]; all of them until a mask picture is read."""
    whitening: Whitening | None
    """The whitening, of as many axes as were asked for; None if vectors are not whitened."""
    explained_variance: float | None
    """Share of the variance that those axes hold; None if `dimensions` are not asked for."""
    mask: bytes | None = None
    """An encoded picture that is white where the region lies; None once it is read, or if there is none."""

    @classmethod
    def of(cls, parameters: EmbedParameters, info: EngineInfo, heads: Heads) -> Self:
        """The plan for a request's parameters.

        Raises:
            InvalidParameter: the model has no such pool or whitening, `keep` or `min_keep` leaves no patch, or a patch
                does not exist; or parameters contradict each other.
        """
        if parameters.pool == "cls" and not info.config.has_cls:
            raise InvalidParameter(
                f"pool: {info.model} {why_no_cls(info.config)}: take mean or tokens", parameter="pool"
            )
        whitening, explained_variance = _whitening_for(parameters, heads)
        every = _shared_indices(info.config.num_patches)
        plan = cls(parameters, None, every, whitening, explained_variance)
        if parameters.patches is not None:
            _require_one_region("patches", parameters)
            return plan.encode_inside([int(index) for index in parameters.patches.split(",")], "patches")
        if parameters.min_keep is not None:
            if parameters.min_keep > parameters.keep:
                raise InvalidParameter(
                    f"min_keep: {parameters.min_keep} is more than keep={parameters.keep}", parameter="min_keep"
                )
            _draw_patches(info.config.grid, parameters.min_keep, 0, "min_keep")
        return plan if parameters.keep == 1 else plan.degrade(parameters.keep, info.config.grid, "keep")

    @property
    def shares(self) -> Sequence[float]:
        """The shares of an image that each image may count as in the queue, the largest first.

        The first is a whole image, of which `keep` patches are encoded. The others are for `degrade`: half of `keep`, a
        quarter and so on, and at last `min_keep`. These are few, so that images have few different numbers of patches,
        and fill batches together.
        """
        keep, least = self.parameters.keep, self.parameters.min_keep
        shares = [1.0]
        while least is not None and keep > least:
            keep = max(keep / 2, least)
            shares.append(keep)
        return shares

    def degrade(self, keep: float, grid: int, parameter: str = "min_keep") -> Self:
        """The plan that encodes the share `keep` of the patches of a grid, drawn by the request's seed or a new one.

        Raises:
            InvalidParameter: this leaves no patch; the message names `parameter`.
        """
        seed = new_seed() if self.parameters.seed is None else self.parameters.seed
        return replace(
            self,
            parameters=self.parameters.model_copy(update={"keep": keep}),
            seed=seed,
            visible_indices=_draw_patches(grid, keep, seed, parameter),
        )

    def with_mask(self, picture: bytes, count: int) -> Self:
        """The plan for the region that is white in a mask picture, which is read once the image is decoded.

        Args:
            picture: an encoded image as large as the request's.
            count: the number of images in the request.

        Raises:
            InvalidParameter: the request also says otherwise which patches are encoded, or has several images.
        """
        _require_one_region("mask", self.parameters)
        if count > 1:
            raise _region_error("mask", "a mask goes with one image, and this request has more")
        return replace(self, mask=picture)

    def encode_inside(self, region: Iterable[int], parameter: str) -> Self:
        """The plan that encodes the patches of a region, in the order of the image.

        A region of all patches is the whole image.

        Args:
            region: row-major indices of patches.
            parameter: what names the region, for the message: "patches" or "mask".

        Raises:
            InvalidParameter: a patch does not exist, or there is none.
        """
        num_patches = len(self.visible_indices)
        try:
            inside = visible_inside(region, num_patches)
        except MaskError as error:
            raise _region_error(parameter, str(error)) from error
        patches = None if len(inside) == num_patches else ",".join(map(str, inside.tolist()))
        parameters = self.parameters.model_copy(update={"patches": patches})
        return replace(self, parameters=parameters, visible_indices=inside, mask=None)

    @property
    def is_region(self) -> bool:
        """Whether a region of the image is encoded."""
        return self.parameters.patches is not None

    def keep(self, config: MAEConfig) -> float:
        """The share of the patches that is encoded."""
        return len(self.visible_indices) / config.num_patches if self.is_region else self.parameters.keep

    @property
    def pool(self) -> Pool:
        """The pooled vector, or all tokens."""
        return self.parameters.pool

    @property
    def operation(self) -> Operation:
        """What the engine computes."""
        return "tokens" if self.pool == "tokens" else "embed"

    @property
    def is_determined(self) -> bool:
        """Whether the same request would get the same vectors again: no seed was drawn for it."""
        return self.seed is None or self.parameters.seed is not None

    def dim(self, config: MAEConfig) -> int:
        """Length of a finished vector, D'."""
        return config.embed_dim if self.whitening is None else self.whitening.matrix.shape[1]

    def finish(self, vectors: Sequence[Floats]) -> Floats:
        """Whitens the engine's vectors, then scales them to length 1, as far as the request asks for it.

        Args:
            vectors: float32 [D] per image, or [K, D] for tokens.

        Returns:
            float32 [B, D'], or [B, K, D].
        """
        if self.whitening is not None:
            # Each vector alone: how a product of matrices rounds depends on the number of rows, and an image's vector
            # must not depend on the other images of its request.
            vectors = [self.whitening.apply(vector) for vector in vectors]
        finished: Floats = np.stack(vectors)
        if self.parameters.normalize:
            lengths = np.linalg.norm(finished, axis=-1, keepdims=True)
            finished = finished / np.maximum(lengths, np.finfo(np.float32).tiny)
        return finished


async def embed_images(
    pipeline: Pipeline, request: ImageRequest, plan: EmbeddingPlan
) -> tuple[Sequence[Floats], EmbeddingPlan]:
    """Embeds images as a request asks for it; under load, of fewer patches if the request allows it.

    Args:
        pipeline: to the engine.
        request: the images; a single one for a plan with a mask picture. `VisiblePatches` have their own patches.
        plan: what was asked for.

    Returns:
        A vector per image that is not left out, float32 [D], or [K, D] for tokens, in the order of `visible_indices`;
        and the plan that was carried out: it has the patches that were encoded.

    Raises:
        InvalidParameter: the mask picture has another size than the image, or nothing is white in it.
        ServiceError: an image is refused, the queue is full, or the engine has failed.
    """
    done = plan

    def degrade(share: float) -> Inference:
        nonlocal done
        done = plan.degrade(share, pipeline.info.config.grid)
        return Inference(done.operation, (done.visible_indices,), is_determined=done.is_determined)

    def choose_visible(image: DecodedImage, reserved: int) -> Indices:
        assert plan.mask is not None
        white = pipeline.image_decoder.read_mask(plan.mask, image, reserved, may_be_long=reserved > 0)
        return plan.encode_inside(white.tolist(), "mask").visible_indices

    inference = Inference(
        plan.operation,
        (plan.visible_indices,) if plan.mask is None else choose_visible,
        picture=plan.mask or b"",
        is_determined=plan.is_determined,
        shares=plan.shares,
        degrade=degrade,
    )
    results = await pipeline.infer(request, inference)
    if plan.mask is not None:  # of a single image
        done = plan.encode_inside(results[0].visible_indices[0].tolist(), "mask")
    vectors = [vector for image in results for vector in image.vectors]
    return vectors if plan.pool == "tokens" else [vector[POOL_INDEX[plan.pool]] for vector in vectors], done


@lru_cache
def _shared_indices(num_patches: int) -> Indices:
    """The indices of all patches: one array for all requests, which none of them changes."""
    return all_indices(num_patches)


def _draw_patches(grid: int, keep: float, seed: int, parameter: str) -> Indices:
    """`random_visible`; its MaskError becomes an InvalidParameter that names `parameter`."""
    try:
        return random_visible(grid, keep, seed)
    except MaskError as error:
        raise InvalidParameter(f"{parameter}: {error}", parameter=parameter) from error


def _require_one_region(name: str, parameters: EmbedParameters) -> None:
    """Refuses parameters that choose other patches than the region `name`: "patches", or "mask" for a picture."""
    if name == "mask" and parameters.patches is not None:
        raise _region_error("mask", "patches and a mask picture cannot both be given")
    for other in ("keep", "min_keep", "seed"):
        if other in parameters.model_fields_set:
            raise _region_error(other, f"{name} says which patches are encoded, so {other} cannot be given")


def _region_error(parameter: str, reason: str) -> InvalidParameter:
    """The error of a request for a region; it says what a region means here, which is another thing elsewhere."""
    meaning = "On /embed, patches or white in a mask name what is encoded, the opposite of /reconstruct"
    return InvalidParameter(f"{parameter}: {reason}. {meaning}", parameter=parameter)


def _whitening_for(parameters: EmbedParameters, heads: Heads) -> tuple[Whitening | None, float | None]:
    """The whitening of a request, and the share of the variance that it keeps; None where neither is asked for.

    Raises:
        InvalidParameter: the model does not hold what is asked for, or parameters contradict each other.
    """
    dimensions = parameters.dimensions
    if dimensions is not None and "whiten" in parameters.model_fields_set and not parameters.whiten:
        raise InvalidParameter(
            "dimensions: these are the principal axes of whitened vectors, and whiten=false asks for none",
            parameter="dimensions",
        )
    if not parameters.whitens:
        if parameters.dtype == "binary":
            raise InvalidParameter(
                "dtype: binary vectors are the signs of whitened vectors: add whiten=true or dimensions",
                parameter="dtype",
            )
        return None, None
    name = "whiten" if dimensions is None else "dimensions"
    if parameters.pool == "tokens":
        raise InvalidParameter(f"{name}: tokens are never whitened, only pool=mean and pool=cls", parameter=name)
    whitening = heads.whitening.get(parameters.pool)
    if whitening is None:
        raise InvalidParameter(
            f"{name}: the model holds no whitening of pool={parameters.pool}: mae evaluate --fit adds it",
            parameter=name,
        )
    if dimensions is None:
        return whitening, None
    axes = whitening.matrix.shape[1]
    if dimensions > axes:
        raise InvalidParameter(
            f"dimensions: the model's whitening of pool={parameters.pool} has {axes} axes, and {dimensions} are more",
            parameter="dimensions",
        )
    return whitening.keep_axes(dimensions), float(whitening.explained_variance[dimensions - 1])
