"""The index that the service searches: it is opened with the engine, whose vectors must be of its space."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from model.arrays import Floats
from model.engines.base import EngineInfo
from service.index.errors import ForeignSpace, ImageIndexError, MissingIndex
from service.inference.searcher import IndexInfo, Neighbour
from service.inference.vector_space import space_of


def check_index(path: Path) -> None:
    """Checks what can be told of the setting INDEX before the engine is loaded, without importing LanceDB.

    Raises:
        MissingIndex: nothing is there.
        ImageIndexError: its name is not that of an index, or LanceDB is not installed.
    """
    from service.index.store import SUFFIX

    if not path.is_dir():
        raise MissingIndex(f"INDEX: there is no index {path}: mae index makes one")
    if path.suffix != SUFFIX:
        raise ImageIndexError(f"INDEX: {path} is no index: the name of one ends in {SUFFIX}")
    if find_spec("lancedb") is None:
        raise ImageIndexError(f"INDEX: {path} needs LanceDB: pip install 'mae-serve[index]'")


class ServedIndex:
    """The `Index` of the service: an `ImageIndex` whose space the engine's vectors share."""

    def __init__(self, path: Path, info: EngineInfo) -> None:
        """Opens the index at `path` for the engine that `info` describes. This blocks for a second or so.

        Raises:
            MissingIndex: there is none.
            ForeignSpace: its vectors are of another space than those of the engine; the message names both.
            ImageIndexError: LanceDB is not installed, or this is no index that `mae index` has made.
        """
        from service.index.store import ImageIndex

        self._index = ImageIndex(path)
        self.embedding = self._index.description.parameters
        if (space := space_of(info, self.embedding)) != self._index.space:
            raise ForeignSpace(
                f"{path} holds vectors of the space {self._index.space}, and this server's would be of {space}"
            )
        self.rows = self._index.count

    def describe(self) -> IndexInfo:
        """See `Index.describe`."""
        index, self.rows = self._index, self._index.count
        approximation = index.approximation
        return IndexInfo(
            name=index.name,
            space=index.space,
            rows=self.rows,
            exact=approximation is None,
            recall=None if approximation is None else approximation.recall,
        )

    def search(self, vectors: Floats, k: int, thumbnails: bool) -> list[list[Neighbour]]:
        """See `Index.search`."""
        found = self._index.search(vectors, k, thumbnails=thumbnails)
        self.rows = self._index.count  # of a version that is no older than the one that was searched
        return found
