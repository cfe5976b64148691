"""Small indexes of images, and an engine whose vectors are known by hand."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads
from model.engines.base import EngineInfo
from service.index.description import IndexDescription
from service.index.store import ImageIndex
from service.index.table import IndexRow
from service.inference.embedding import EmbeddingPlan
from service.parameters import EmbedParameters
from tests.support.engines import FakeEngine


class Compass(FakeEngine):
    """The mean vector of an image of one grey points into the direction `angle(grey)`."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        vectors = super().embed(lane, patches, visible_indices)
        vectors[:, 1] = [direction(grey) for grey in patches[:, 0, 0].tolist()]
        return vectors


def angle(grey: float) -> float:
    """Half a turn from black to white."""
    return np.pi * grey / 255


def direction(grey: float) -> Floats:
    """The vector of an image of one grey, float32 [8]."""
    return np.array([3 * np.cos(angle(grey)), 3 * np.sin(angle(grey)), 0, 0, 0, 0, 0, 0], np.float32)


def picture(grey: int) -> bytes:
    """An image of one grey as PNG."""
    out = io.BytesIO()
    Image.new("L", (32, 32), grey).save(out, "PNG")
    return out.getvalue()


def write_index(
    path: Path,
    vectors: Mapping[str, Floats],
    info: EngineInfo,
    parameters: EmbedParameters | None = None,
    heads: Heads | None = None,
    thumbnails: Mapping[str, bytes] | None = None,
) -> ImageIndex:
    """Writes an index of vectors by the path of their image, each below the folder /photos."""
    plan = EmbeddingPlan.of(parameters or EmbedParameters(), info, heads or Heads())
    index = ImageIndex.create(path, IndexDescription.of(info, plan))
    pictures = thumbnails or {}
    index.add(
        [IndexRow(f"/photos/{name}", name, vector, 1, 1, None, pictures.get(name)) for name, vector in vectors.items()]
    )
    return index
