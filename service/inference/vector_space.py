"""The name of a vector space: vectors may be compared where these names are equal."""

from __future__ import annotations

from urllib.parse import quote

from model.engines.base import EngineInfo
from service.parameters import EmbedParameters

COLOUR_SPACE = "srgb"
"""The colours that the model sees: colour profiles are converted to sRGB."""


def space_of(info: EngineInfo, parameters: EmbedParameters) -> str:
    """The vector space of a request in one word: vectors may be compared where these words are equal.

    In order, separated by colons: the model and the hash of its weights; the precision that matrix products are
    computed in, for int8 with the hash of the photographs that it was calibrated on; side, resize, share of the crop,
    filter, colour space, mean and deviation; the number of attention heads of a ViT; the pool; and where they are
    asked for, `whitened`, `dimensions=` with the number of principal axes, `unit` (vectors of length 1), `binary`,
    `keep=` with the share of the patches and `region`. Which patches were drawn or lie in the region is no part of it.
    Float16 and int8 are roundings of the float32 vectors, which they may be compared with. The word is ASCII without
    blanks: other characters of a model's name are percent-encoded.

    Args:
        info: describes the engine.
        parameters: those of an `EmbeddingPlan` that was carried out.
    """
    preprocessing, side = info.preprocessing, info.config.image_size
    pixels = f"{side}-{preprocessing.resize}-{preprocessing.crop_fraction}-{preprocessing.filter}-{COLOUR_SPACE}"
    mean, std = (",".join(map(str, colour)) for colour in (preprocessing.mean, preprocessing.std))
    words = [
        f"{quote(info.model, safe='/')}@{info.weights[:12]}",
        _precision_of(info),
        f"{pixels}-{mean}-{std}",
        *([f"{info.config.num_heads}-heads"] if info.config.family == "vit" else ()),
        parameters.pool,
        *(["whitened"] if parameters.whitens else ()),
        *([f"dimensions={parameters.dimensions}"] if parameters.dimensions is not None else ()),
        *(["unit"] if parameters.normalize else ()),
        *(["binary"] if parameters.dtype == "binary" else ()),
        *([f"keep={parameters.keep}"] if parameters.keep < 1 else ()),
        *(["region"] if parameters.patches is not None else ()),
    ]
    return ":".join(words)


def _precision_of(info: EngineInfo) -> str:
    """The computed precision. Photographs decide how int8 rounds, so int8 calibrated on others is another space."""
    precision = info.computes.replace(" ", "-")
    return precision if info.quantisation is None else f"{precision}-{info.quantisation.digest[:12]}"
