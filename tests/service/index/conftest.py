"""Indexes of made vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.arrays import Floats
from service.index.description import IndexDescription
from service.index.store import ImageIndex
from service.index.table import IndexRow
from service.parameters import EmbedParameters

MakeIndex = Callable[[Floats], ImageIndex]


def describe(dim: int, space: str = "fake:whitened") -> IndexDescription:
    return IndexDescription(space=space, model="fake@0", dim=dim, parameters=EmbedParameters(whiten=True))


def make_rows(vectors: Floats, first: int = 0) -> list[IndexRow]:
    """The row of the vector with the number i is of the file /photos/i.jpg, and has i bytes."""
    return [
        IndexRow(f"/photos/{number}.jpg", f"{number}.jpg", vector, number, 1_000_000 + number)
        for number, vector in enumerate(vectors, first)
    ]


@pytest.fixture
def make_index(tmp_path: Path) -> MakeIndex:
    """Creates the index photos.lance of vectors."""

    def make(vectors: Floats) -> ImageIndex:
        index = ImageIndex.create(tmp_path / "photos.lance", describe(vectors.shape[1]))
        index.add(make_rows(vectors))
        return index

    return make


@pytest.fixture
def vectors() -> Floats:
    """Two hundred vectors of seven numbers: no number of columns that quantisers would like."""
    return np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
