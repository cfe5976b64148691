"""`mae serve` with nothing set: the packaged model, and what it should be worth."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors import safe_open

from tests.live.conftest import LiveServer, Start
from tests.support.images import encoded

WEIGHTS = Path(__file__).parents[2] / "model/weights/mae_tiny.safetensors"
OCTETS = "application/octet-stream"


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


def test_short_vectors_are_the_axes_of_the_whitening_in_the_file(packaged: LiveServer, golden) -> None:
    """The file's own numbers, read by safetensors and multiplied in float64."""
    with safe_open(WEIGHTS, framework="numpy") as file:
        centre, matrix = (file.get_tensor(f"whitening.mean.{name}").astype(np.float64) for name in ("centre", "matrix"))
    files = [("image", (f"{n}.png", encoded(image))) for n, image in enumerate(golden["images"])]
    with httpx.Client(base_url=packaged.url, timeout=60) as client:
        raw = np.array(client.post("/embed", files=files).json()["embeddings"])
        short = client.post("/embed?dimensions=64", files=files).json()
        octets = client.post("/embed?dimensions=64&dtype=binary", files=files, headers={"accept": OCTETS})
    expected = ((raw - centre) @ matrix)[:, :64]
    np.testing.assert_allclose(short["embeddings"], expected, atol=1e-3)
    variances = 1 / (matrix**2).sum(axis=0)
    assert short["explained_variance"] == pytest.approx(variances[:64].sum() / variances.sum(), abs=1e-5)
    assert octets.headers["x-mae-shape"] == "8,8" and octets.headers["x-mae-dtype"] == "binary"
    bits = np.unpackbits(np.frombuffer(octets.content, np.uint8).reshape(8, 8), axis=1).astype(bool)
    sure = np.abs(expected) > 1e-3  # whose sign no rounding can change
    np.testing.assert_array_equal(bits[sure], (expected > 0)[sure])
