"""`mae serve` with nothing set: the packaged model, and what it should be worth."""

import httpx
import numpy as np
import pytest

from tests.live.conftest import LiveServer, Start
from tests.support.images import encoded


@pytest.fixture(scope="module")
def packaged(start_server: Start) -> LiveServer:
    return start_server()


def test_it_reconstructs_better_than_the_probe(packaged: LiveServer, golden) -> None:
    """On photographs that neither was trained on: the probe's losses were written by another implementation."""
    losses = []
    with httpx.Client(base_url=packaged.url, timeout=60) as client:
        assert client.get("/info").json()["model"].startswith("mae_tiny@")
        for image, mask in zip(golden["images"], golden["mask"], strict=True):
            patches = ",".join(map(str, np.flatnonzero(mask)))
            answer = client.post("/reconstruct", params={"patches": patches}, content=encoded(image))
            losses.append(float(answer.headers["x-mae-loss"]))
    assert np.mean(losses) < 0.9 * golden["loss"].mean()


def test_it_finds_the_other_view_of_a_photograph(packaged: LiveServer, golden) -> None:
    images = golden["images"]
    views = [image[8:200, 16:208] for image in images]
    files = [("image", (f"{n}.png", encoded(np.ascontiguousarray(view)))) for n, view in enumerate([*images, *views])]
    with httpx.Client(base_url=packaged.url, timeout=60) as client:
        vectors = np.array(client.post("/embed", files=files).json()["embeddings"])
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors[8:] @ vectors[:8].T).argmax(axis=1).tolist() == list(range(8))
