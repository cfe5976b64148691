"""An engine whose vectors are known from the pixels, behind POST /embed."""

from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
from fastapi.testclient import TestClient

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads, Whitening
from tests.support.app import serve_app
from tests.support.engines import FakeEngine
from tests.support.images import encoded

DRAW = np.random.default_rng(8)
CENTRE = DRAW.normal(size=8).astype(np.float32)
MATRIX = DRAW.normal(size=(8, 7)).astype(np.float32)
WEIGHT = DRAW.normal(size=(768, 8))


class Projection(FakeEngine):
    """A token is a projection of its patch's pixels; the mean vector is the tokens' mean, and cls twice that."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        super().embed(lane, patches, visible_indices)
        mean = self.tokens(lane, patches, visible_indices).mean(axis=1)
        return np.stack([2 * mean, mean], axis=1)

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        return np.asarray(patches / 255 @ WEIGHT, dtype=np.float32)


def draw_picture(seed: int) -> np.ndarray:
    """32 x 32 pixels: the engine sees them as they are."""
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def tokens_of(picture: np.ndarray) -> np.ndarray:
    """[4, 8], in float64, of the four patches of 16 x 16 in row-major order."""
    patches = [picture[y : y + 16, x : x + 16].reshape(-1) for y in (0, 16) for x in (0, 16)]
    return np.stack(patches) / 255 @ WEIGHT


def serve(engine: Projection, **settings: Any) -> AbstractContextManager[TestClient]:
    return serve_app(engine, Heads(None, {"mean": Whitening(CENTRE, MATRIX)}), **settings)


PICTURES = [draw_picture(n) for n in range(3)]


def post(client: TestClient, query: str = "", *extra: bytes, **options: Any) -> httpx.Response:
    images = [*map(encoded, PICTURES), *extra]
    return client.post(f"/embed?{query}", files=[("image", ("f", image)) for image in images], **options)
