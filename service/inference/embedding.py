"""The plan of a request for embeddings: which patches are encoded, which pool is taken, how vectors are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import quote

import numpy as np

from model.arrays import Floats, Indices
from model.checkpoints.heads import Heads, Whitening, why_no_cls
from model.config import MAEConfig
from model.engines.base import EngineInfo
from model.masking import MaskError, all_indices, new_seed, random_visible
from service.errors import InvalidParameter
from service.parameters import EmbedParameters, Pool

COLOUR_SPACE = "srgb"
"""The colours that the model sees: colour profiles are converted to sRGB."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """How the images of one request are embedded, for routes and commands alike."""

    parameters: EmbedParameters
    """What was asked for."""
    seed: int | None
    """The seed that chose the patches; None if every patch is encoded."""
    visible_indices: Indices
    """The patches that are encoded, int32 [K]."""
    whitening: Whitening | None
    """The whitening, of as many axes as were asked for; None if vectors are not whitened."""
    explained_variance: float | None
    """Share of the variance that those axes hold; None if `dimensions` are not asked for."""

    @classmethod
    def of(cls, parameters: EmbedParameters, info: EngineInfo, heads: Heads) -> Self:
        """The plan for a request's parameters.

        Raises:
            InvalidParameter: the model has no such pool or whitening, or `keep` leaves no patch.
        """
        if parameters.pool == "cls" and not info.config.has_cls:
            raise InvalidParameter(
                f"pool: {info.model} {why_no_cls(info.config)}: take mean or tokens", parameter="pool"
            )
        whitening, explained_variance = _whitening_for(parameters, heads)
        if parameters.keep == 1:
            every = _shared_indices(info.config.num_patches)
            return cls(parameters, None, every, whitening, explained_variance)
        seed = new_seed() if parameters.seed is None else parameters.seed
        try:
            visible_indices = random_visible(info.config.grid, parameters.keep, seed)
        except MaskError as error:
            raise InvalidParameter(str(error), parameter="keep") from error
        return cls(parameters, seed, visible_indices, whitening, explained_variance)

    @property
    def pool(self) -> Pool:
        """The pooled vector, or all tokens."""
        return self.parameters.pool

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


def space_of(info: EngineInfo, parameters: EmbedParameters) -> str:
    """The vector space of a request in one word: vectors may be compared where these words are equal.

    In order, separated by colons: the model and the hash of its weights; the precision that matrix products are
    computed in; side, resize, share of the crop, filter, colour space, mean and deviation; the number of attention
    heads of a ViT; the pool; and where they are
    asked for, `whitened`, `dimensions=` with the number of principal axes, `unit` (vectors of length 1), `binary` and
    `keep=` with the share of the patches. Float16 and int8 are roundings of the float32 vectors, which they may be
    compared with. The word is ASCII without blanks: other characters of a model's name are percent-encoded.
    """
    preprocessing, side = info.preprocessing, info.config.image_size
    pixels = f"{side}-{preprocessing.resize}-{preprocessing.crop_fraction}-{preprocessing.filter}-{COLOUR_SPACE}"
    mean, std = (",".join(map(str, colour)) for colour in (preprocessing.mean, preprocessing.std))
    words = [
        f"{quote(info.model, safe='/')}@{info.weights[:12]}",
        info.computes.replace(" ", "-"),
        f"{pixels}-{mean}-{std}",
        *([f"{info.config.num_heads}-heads"] if info.config.family == "vit" else ()),
        parameters.pool,
        *(["whitened"] if parameters.whitens else ()),
        *([f"dimensions={parameters.dimensions}"] if parameters.dimensions is not None else ()),
        *(["unit"] if parameters.normalize else ()),
        *(["binary"] if parameters.dtype == "binary" else ()),
        *([f"keep={parameters.keep}"] if parameters.keep < 1 else ()),
    ]
    return ":".join(words)


@lru_cache
def _shared_indices(num_patches: int) -> Indices:
    """The indices of all patches: one array for all requests, which none of them changes."""
    return all_indices(num_patches)


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
