"""Cohere's API by plain HTTP."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import API_KEY
from tests.live.conftest import LiveServer
from tests.support.clients import grey
from tests.support.fake_server import POISON
from tests.support.images import encoded

KEY = {"authorization": f"Bearer {API_KEY}"}


def uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def post(server: LiveServer, **body: Any) -> httpx.Response:
    body = {"model": "mae_tiny", "input_type": "image", **body}
    return httpx.post(f"{server.url}/v2/embed", json=body, headers=KEY, timeout=60)


def test_the_vectors_of_embed(server: LiveServer, photographs: Any) -> None:
    images = [encoded(photographs[name].resize((300, 260)), "JPEG") for name in ("astronaut", "chelsea")]
    files = [("image", ("f", image)) for image in images]
    expected = httpx.post(f"{server.url}/embed", files=files, headers=KEY, timeout=60).json()["embeddings"]
    inputs = [{"content": [{"type": "image_url", "image_url": {"url": uri(image)}}]} for image in images]
    for sources in ({"images": [*map(uri, images)]}, {"inputs": inputs}):
        answer = post(server, embedding_types=["float", "int8", "base64"], **sources).raise_for_status().json()
        np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=1e-6, rtol=0)
        decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in answer["embeddings"]["base64"]]
        np.testing.assert_allclose(decoded, expected, atol=1e-6, rtol=0)
        values = np.array(answer["embeddings"]["int8"]) * np.array(answer["scales"])[:, None]
        np.testing.assert_allclose(values, expected, atol=np.abs(expected).max() / 250)
        assert answer["meta"]["billed_units"]["images"] == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"texts": ["two cats"]}, 400, "this model sees images only"),
        ({"images": ["https://example.org/cat.jpg"]}, 400, "URLs are never fetched"),
        ({"images": [uri(grey(1))], "model": "embed-v4.0"}, 404, "'embed-v4.0' is not served here"),
        ({"images": [uri(grey(1))], "embedding_types": ["ubinary"]}, 422, "whitened"),
        ({"images": [uri(grey(1))] * 65}, 413, "more than 64 images"),
    ],
)
def test_refusals_are_messages(server: LiveServer, body: dict[str, Any], status: int, words: str) -> None:
    response = post(server, **body)
    assert (response.status_code, list(response.json())) == (status, ["message"])
    assert words in response.json()["message"]


def test_a_wrong_key_and_a_poisoned_image(poisonable: LiveServer) -> None:
    response = post(poisonable, images=[uri(grey(POISON))])
    assert (response.status_code, list(response.json())) == (500, ["message"])
    response = httpx.post(f"{poisonable.url}/v2/embed", json={}, headers={"authorization": "Bearer wrong"})
    assert (response.status_code, list(response.json())) == (401, ["message"])
