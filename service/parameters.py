"""The parameters of requests, for routes and commands alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.anomaly.render import AnomalyView
from model.images.render import View
from model.images.shares import SharesView
from model.masking import MAX_SEED, Strategy
from service.errors import InvalidParameter

Pool = Literal["mean", "cls", "tokens"]
DType = Literal["float32", "float16", "int8", "binary"]
MAX_DRAWS = 64
"""The largest number of masks by which an image is reconstructed."""
MAX_EXPLAIN_PASSES = 256
"""The largest number of passes by which an image is explained."""
ExplainTarget = Literal["class", "similarity"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
AnomalyMethod = Literal["features", "reconstruction"]
MAX_ANOMALY_PASSES = 64
"""The largest number of passes by which an image is reconstructed for its anomalies."""
MAX_NEIGHBOURS = 100
"""The largest number of neighbours of an image."""
PATCHES = re.compile("[0-9]{1,9}(,[0-9]{1,9})*")
OnError = Annotated[
    Literal["fail", "skip"],
    Field(description="skip: an image that fails is null in the JSON answer, and `errors` says why"),
]


class EmbedParameters(BaseModel):
    """The query of POST /embed."""

    model_config = ConfigDict(extra="forbid")

    pool: Pool = Field("mean", description="mean of the patch tokens, the cls token, or all patch tokens")
    whiten: bool = Field(
        False, description="whiten each vector by the model's PCA whitening for the pool, before normalize"
    )
    dimensions: int | None = Field(
        None, ge=1, description="whiten each vector and keep this many principal axes, those with the most variance"
    )
    normalize: bool = Field(False, description="scale each vector to length 1")
    keep: float = Field(1.0, gt=0, le=1, allow_inf_nan=False, description="share of the patches that is encoded")
    min_keep: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="under load, fewer patches than keep may be encoded, down to this share, before a request is"
        " answered 429",
    )
    seed: Seed | None = Field(None, description="seed by which the patches are drawn, where not all are encoded")
    patches: str | None = Field(
        None,
        json_schema_extra={"pattern": f"^{PATCHES.pattern}$"},
        description="a region: row-major indices of the patches to encode, such as 3,17,42 (the opposite of"
        " /reconstruct, where they are removed)",
    )
    dtype: DType = Field(
        "float32",
        description="type of a vector's numbers; int8: the answer has a scale for each vector; binary: the signs of a"
        " whitened vector, eight to a byte",
    )
    encoding: Literal["float", "base64"] = Field(
        "float", description="float: JSON numbers; base64: the numbers' little-endian bytes in base64"
    )
    on_error: OnError = "fail"

    @field_validator("patches")
    @classmethod
    def _require_numbers(cls, value: str | None) -> str | None:
        return _require_patches(value)

    @property
    def whitens(self) -> bool:
        """Whether vectors are whitened: for `whiten`, and for `dimensions`, which are principal axes."""
        return self.whiten or self.dimensions is not None


class ClassifyParameters(BaseModel):
    """The query of POST /classify."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, description="number of classes to return, the most probable first; at most all")
    on_error: OnError = "fail"


class ReconstructParameters(BaseModel):
    """The query of POST /reconstruct."""

    model_config = ConfigDict(extra="forbid")

    mask_ratio: float = Field(0.75, ge=0, le=1, allow_inf_nan=False, description="share of the patches that is removed")
    strategy: Strategy = Field("random", description="how the removed patches are drawn")
    seed: Seed | None = Field(None, description="seed of the mask, which all images share")
    draws: int = Field(
        1, ge=1, le=MAX_DRAWS, description="number of masks, by seed, seed + 1 and so on: the answer is their mean"
    )
    patches: str | None = Field(
        None,
        json_schema_extra={"pattern": f"^{PATCHES.pattern}$"},
        description="row-major indices of the patches to remove, such as 3,17,42",
    )
    view: View = Field("composite", description="what the PNG shows")
    on_error: OnError = "fail"

    @field_validator("patches")
    @classmethod
    def _require_numbers(cls, value: str | None) -> str | None:
        return _require_patches(value)


class ExplainParameters(BaseModel):
    """The query of POST /explain."""

    model_config = ConfigDict(extra="forbid")

    target: ExplainTarget | None = Field(
        None,
        description="class: the probability of a class; similarity: the cosine with a second image; by default class"
        " where there is a head",
    )
    label: str | None = Field(None, description="the class; by default the most probable one")
    passes: int = Field(
        128, ge=2, le=MAX_EXPLAIN_PASSES, description="number of passes; each leaves out a random half of the patches"
    )
    seed: Seed | None = Field(None, description="seed of the halves that are left out")
    view: SharesView = Field("overlay", description="what the PNG shows")


class AnomalyParameters(BaseModel):
    """The query of POST /anomaly."""

    model_config = ConfigDict(extra="forbid")

    method: AnomalyMethod | None = Field(
        None,
        description="features: distance to the memory bank of normal images, the default where the weights hold one;"
        " reconstruction: error of each patch as the decoder predicts it from the others",
    )
    view: AnomalyView = Field("overlay", description="what the PNG shows")
    false_alarms: float = Field(
        0.01,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="share of normal images that the threshold may flag, for method=features",
    )
    mask_ratio: float = Field(
        0.75, ge=0, le=1, allow_inf_nan=False, description="share of the patches that each pass removes"
    )
    passes: int | None = Field(
        None,
        ge=1,
        le=MAX_ANOMALY_PASSES,
        description="number of reconstructions of each image; by default as few as remove each patch at least once",
    )
    seed: Seed | None = Field(None, description="seed of the masks, which all images share")
    on_error: OnError = "fail"


class SearchParameters(BaseModel):
    """The query of POST /search."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, ge=1, le=MAX_NEIGHBOURS, description="number of neighbours of each image, the nearest first")
    min_similarity: float | None = Field(
        None, ge=-1, le=1, allow_inf_nan=False, description="leave out neighbours with a smaller cosine"
    )
    thumbnails: bool = Field(False, description="add a small picture of each neighbour, as far as the index holds them")
    on_error: OnError = "fail"


def invalid_parameter(error: Mapping[str, Any]) -> InvalidParameter:
    """The error that the client gets for `error`, one of those that pydantic finds in the parameters."""
    # The last part that is a name: of a value inside a list, the list is the parameter.
    name = next(part for part in reversed(error["loc"]) if isinstance(part, str))
    reason = "unknown parameter" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return InvalidParameter(f"{name}: {reason}", parameter=name)


def _require_patches(value: str | None) -> str | None:
    if value is not None and not PATCHES.fullmatch(value):
        raise ValueError("expected numbers of patches, separated by commas, such as 3,17,42")
    return value
