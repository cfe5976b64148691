"""The way from a request to the index of images, as the pipeline sees it.

`service.inference.index_searcher` is that of the process which has the index, and `service.workers.search_client` that
of a worker in front of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pydantic import BaseModel, Field

from model.arrays import Floats
from service.parameters import EmbedParameters, SearchParameters


class IndexInfo(BaseModel):
    """An index of images, as GET /info describes it."""

    name: str = Field(description="name of the index's folder, without .lance")
    space: str = Field(description="the vector space of its vectors")
    rows: int = Field(description="number of its images")
    exact: bool = Field(description="whether a search compares with every vector; otherwise it is approximate")
    recall: float | None = Field(
        description="share of the 10 nearest images that an approximate search finds, 0 to 1, as `mae index` measured"
        " it; null for exact searches"
    )


class Neighbour(NamedTuple):
    """An image of the index that is near a query."""

    file: str
    """The absolute path without links, or the address of an object in a bucket."""
    path: str
    """The path as it was given when the image was embedded."""
    similarity: float
    """The cosine of the angle between the vectors, from -1 to 1."""
    thumbnail: bytes | None = None
    """A small JPEG, where thumbnails were asked for and the index has one."""


@dataclass(frozen=True)
class Query:
    """What one request asks the index for."""

    vectors: Floats
    """float32 [n, D], in the space of the index."""
    parameters: SearchParameters
    deadline: float
    """In seconds of time.monotonic(); later than that no search begins."""


class Searcher(Protocol):
    """The way from a request to the index: in this process, or in the engine process. Used on the event loop."""

    embedding: EmbedParameters
    """How the images of the index were embedded."""

    async def describe(self) -> IndexInfo:
        """The index as it is now.

        Raises:
            SearchFailed: the index cannot be read.
        """

    async def search(self, query: Query) -> list[list[Neighbour]]:
        """The neighbours of each vector, the nearest first: `k` of them, fewer in a small index or by `min_similarity`.

        Raises:
            QueueFull: too many searches wait.
            DeadlinePassed: the search did not begin in time.
            SearchFailed: the index cannot be read.
        """
