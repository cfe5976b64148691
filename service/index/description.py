"""What an index says of itself: the vector space of its vectors, and how images are embedded into it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_serializer

from model.engines.base import EngineInfo
from service.index.errors import ForeignSpace
from service.inference.embedding import EmbeddingPlan
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters

METADATA_KEY = "mae-serve"
"""The key of the description in the metadata of the table's schema."""


class IndexDescription(BaseModel):
    """The content of the metadata: all vectors of an index have these properties."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    space: str
    """The vector space in one word, as POST /embed answers it."""
    model: str
    """The name of the model and the hash of its weights."""
    dim: int
    """The length of a vector, D."""
    parameters: EmbedParameters
    """How an image is embedded for the index; with a seed where not all patches are encoded."""

    @field_serializer("parameters")
    def _dump_parameters(self, parameters: EmbedParameters) -> dict[str, Any]:
        """What differs from the defaults: a plan refuses some parameters beside others, even with default values."""
        return parameters.model_dump(exclude_defaults=True)

    @classmethod
    def of(cls, info: EngineInfo, plan: EmbeddingPlan) -> Self:
        """The description of an index of vectors that an engine computes by a plan."""
        parameters = plan.parameters.model_dump(exclude_defaults=True) | {"seed": plan.seed}
        return cls(
            space=space_of(info, plan.parameters),
            model=info.model_id,
            dim=plan.dim(info.config),
            parameters=EmbedParameters(**{name: value for name, value in parameters.items() if value is not None}),
        )

    def require(self, space: str, where: str) -> None:
        """Checks that vectors of `space` may be compared with those of the index `where`.

        Raises:
            ForeignSpace: the spaces differ; the message names both.
        """
        if space != self.space:
            raise ForeignSpace(
                f"{where} holds vectors of the space {self.space}, which cannot be compared with those of {space}: "
                "take the model and the options of the index, or make the index anew"
            )


class Approximation(BaseModel):
    """How vectors are searched through an approximate index, and how well that was measured to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """LanceDB's name of the index's type."""
    partitions: int
    """Number of cells that the vectors are divided into."""
    probes: int
    """Number of cells that a search looks into."""
    recall: float
    """Share of the 10 nearest neighbours by exact search that the index finds, the mean over the queries."""
    queries: int
    """Number of vectors by which the recall was measured; they were no part of the index then."""
    rows: int
    """Number of vectors in the index when it was built."""
