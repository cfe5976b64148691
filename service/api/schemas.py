"""The bodies of requests and responses as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from model.engines.base import ComputedPrecision, EngineInfo
from model.images.render import View
from model.images.shares import SharesView
from service.inference.searcher import IndexInfo
from service.parameters import AnomalyMethod, DType, ExplainTarget, Pool


class SkippedImage(BaseModel):
    """One image that `on_error=skip` has left out."""

    image: int = Field(description="the index of the image")
    code: str
    message: str


Skipped = Annotated[
    list[SkippedImage] | None, Field(description="the images that were left out, for on_error=skip, otherwise absent")
]


class Embeddings(BaseModel):
    """The response of POST /embed."""

    model: str = Field(description="name@weights-hash")
    space: str = Field(description="the vector space in one word: vectors may be compared where it is the same")
    precision: ComputedPrecision = Field(description="the precision that the engine computes in")
    normalized: bool = Field(description="whether each vector was scaled to length 1")
    keep: float = Field(
        description="share of the patches that was encoded; with min_keep it may be less than was asked for"
    )
    pool: Pool
    dim: int
    count: int
    embeddings: list[Any] = Field(
        description="one vector per image, as numbers or base64; for tokens a list of vectors per image; null for an"
        " image that was left out"
    )
    grid: tuple[int, int] | None = Field(None, description="rows and columns of patches, for tokens")
    positions: list[int] | None = Field(
        None, description="row-major indices of the encoded patches, for a region, and for tokens with keep below 1"
    )
    seed: int | None = Field(None, description="seed by which the encoded patches were drawn, for keep below 1")
    whitened: bool | None = Field(None, description="true for whiten=true and for dimensions, otherwise absent")
    explained_variance: float | None = Field(
        None, description="share of the variance that the kept axes hold, 0 to 1, for dimensions, otherwise absent"
    )
    dtype: DType | None = Field(None, description="the type of the numbers where it is not float32, otherwise absent")
    scales: list[Any] | None = Field(
        None,
        description="for dtype=int8, a factor per vector: its numbers times the factor are its values; for tokens a"
        " list per image; null for an image that was left out",
    )
    errors: Skipped = None


class ClassProbability(BaseModel):
    """One class and its probability."""

    label: str = Field(description="name of the class, as in engine.head.classes of /info")
    probability: float = Field(description="softmax over all classes of the head, 0 to 1")


class Classified(BaseModel):
    """One image in the response of POST /classify."""

    classes: list[ClassProbability] = Field(description="the most probable class first")


class Classifications(BaseModel):
    """The response of POST /classify."""

    model: str = Field(description="name@weights-hash")
    count: int
    classifications: list[Classified | None] = Field(
        description="one per image, in the order of the images; null for an image that was left out"
    )
    errors: Skipped = None


class Reconstructed(BaseModel):
    """One image in the response of POST /reconstruct."""

    loss: float = Field(description="mean squared error over the removed patches")
    error: list[float] = Field(description="squared error of each patch, row-major")
    spread: list[float | None] | None = Field(
        None,
        description="standard deviation of each patch over the draws in levels of 255, null for a patch that fewer than"
        " two draws remove; absent for a single draw",
    )
    png: str = Field(description="the PNG in base64")


class Reconstructions(BaseModel):
    """The response of POST /reconstruct as JSON."""

    model: str
    view: View
    count: int
    seed: int | None = Field(description="null where the request says which patches to remove")
    seeds: list[int] | None = Field(None, description="the seed of each draw; absent for a single draw")
    mask_ratio: float = Field(description="share of the patches that was removed")
    grid: tuple[int, int]
    mask: list[int] = Field(description="1 = removed, 0 = kept, row-major")
    reconstructions: list[Reconstructed | None] = Field(description="null for an image that was left out")
    errors: Skipped = None


class NeighbourAnswer(BaseModel):
    """One neighbour of an image."""

    name: str = Field(description="name of its file, without folders")
    similarity: float = Field(description="cosine of the two vectors, -1 to 1")
    path: str | None = Field(None, description="its path as `mae index` got it; absent without INDEX_PATHS")
    file: str | None = Field(None, description="its absolute path without links; absent without INDEX_PATHS")
    thumbnail: str | None = Field(
        None,
        description="a small picture of it as data:image/jpeg;base64,…, null if the index holds none; absent without"
        " thumbnails=true",
    )


class Searched(BaseModel):
    """One image in the response of POST /search."""

    neighbours: list[NeighbourAnswer] = Field(description="the nearest first")


class Searches(BaseModel):
    """The response of POST /search."""

    model: str = Field(description="name@weights-hash")
    space: str = Field(description="the vector space in which the images are compared: that of the index")
    count: int
    searches: list[Searched | None] = Field(
        description="one per image, in the order of the images; null for an image that was left out"
    )
    errors: Skipped = None


class ExplanationAnswer(BaseModel):
    """The response of POST /explain as JSON."""

    model: str = Field(description="name@weights-hash")
    target: ExplainTarget
    label: str | None = Field(None, description="the class that is explained; absent for similarity")
    whitened: bool | None = Field(
        None, description="whether the vectors were whitened before the cosine; absent for a class"
    )
    score: float = Field(description="probability of the class, or cosine of the two images, for the whole image")
    grid: tuple[int, int]
    patches: list[float] = Field(
        description="row-major: mean score of the passes that see the patch, less that of those that do not"
    )
    scale: float = Field(description="the largest of these numbers in size, which the picture shows in the full colour")
    passes: int
    seed: int
    view: SharesView
    png: str = Field(description="the PNG in base64")


class DetectedAnomaly(BaseModel):
    """One image in the response of POST /anomaly."""

    score: float = Field(description="the largest of the patches' scores")
    flagged: bool | None = Field(description="whether the score is above the threshold; null without one")
    patches: list[float] = Field(description="score of each patch, row-major")


class Anomalies(BaseModel):
    """The response of POST /anomaly as JSON."""

    model: str = Field(description="name@weights-hash")
    method: AnomalyMethod
    count: int
    grid: tuple[int, int] = Field(description="rows and columns of patches")
    calibrated: bool = Field(description="whether normal images gave a threshold; false: the scores are raw")
    false_alarms: float | None = Field(description="share of normal images that the threshold may flag")
    threshold: float | None = Field(description="score above which a patch, and so its image, is flagged")
    mask_ratio: float | None = Field(description="share of the patches that each pass removes; null without masks")
    passes: int | None = Field(description="reconstructions of each image; null without masks")
    seed: int | None = Field(description="seed of the masks; null without masks")
    anomalies: list[DetectedAnomaly | None] = Field(
        description="one per image, in the order of the images; null for an image that was left out"
    )
    errors: Skipped = None


class Info(BaseModel):
    """The response of GET /info."""

    model: str
    version: str
    engine: EngineInfo
    index: IndexInfo | None = Field(description="the index that /search searches; null without INDEX")
    limits: dict[str, float | int]


class ServiceState(BaseModel):
    """What both probes answer."""

    state: str = Field(description="loading, ready, draining or lost")
    reason: str = Field(description="the step that runs, or why the service is lost")


class Liveness(ServiceState):
    """The response of the probe of liveness."""

    live: bool = Field(description="false once the engine is lost, as the status says")


class Readiness(ServiceState):
    """The response of the probe of readiness."""

    ready: bool = Field(description="whether requests are accepted, as the status says")


BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
"""A body of bytes."""


def request_body(mask: str | None = None) -> dict[str, Any]:
    """The three kinds of request body, as OpenAPI describes them; `mask` says what a mask picture does."""
    binary = BINARY["schema"]
    parts: dict[str, Any] = {"image": {"type": "array", "items": binary, "description": "one file part per image"}}
    keys: dict[str, Any] = {
        "images": {"type": "array", "items": {"type": "string"}, "description": "base64, or data:image/…;base64,…"}
    }
    if mask is not None:
        parts["mask"] = {**binary, "description": f"a picture as large as the image; {mask}"}
        keys["mask"] = {"type": "string", "description": f"the mask picture in base64; {mask}"}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": parts, "required": ["image"]}},
                "application/json": {"schema": {"type": "object", "properties": keys, "required": ["images"]}},
                **{kind: BINARY for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")},
            },
        }
    }
