"""The parameters of requests, for routes and commands alike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.images.render import View
from model.masking import MAX_SEED, Strategy

Pool = Literal["mean", "cls", "tokens"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class EmbedParameters(BaseModel):
    """The query of POST /embed."""

    model_config = ConfigDict(extra="forbid")

    pool: Pool = Field("mean", description="mean of the patch tokens, the cls token, or all patch tokens")
    whiten: bool = Field(False, description="whiten with what the model holds for the pool, before normalize")
    normalize: bool = Field(False, description="scale each vector to length 1")
    keep: float = Field(1.0, gt=0, le=1, allow_inf_nan=False, description="share of the patches that is encoded")
    seed: Seed | None = Field(None, description="which patches, for keep below 1")
    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32")


class ClassifyParameters(BaseModel):
    """The query of POST /classify."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, description="how many classes to name, the likeliest first; all, if there are fewer")


class ReconstructParameters(BaseModel):
    """The query of POST /reconstruct."""

    model_config = ConfigDict(extra="forbid")

    mask_ratio: float = Field(0.75, ge=0, le=1, allow_inf_nan=False, description="share of the patches that is removed")
    strategy: Strategy = Field("random", description="which patches are removed")
    seed: Seed | None = Field(None, description="of the mask; the same for all images")
    patches: str | None = Field(
        None, pattern=r"^\d{1,9}(,\d{1,9})*$", description="the removed patches themselves, row-major: 3,17,42"
    )
    view: View = Field("composite", description="what the picture shows")
