"""What the tests of the Open Inference Protocol's clients send, and how near to /embed their vectors are."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.clients.conftest import API_KEY
from tests.live.conftest import LiveServer

CAT = Path(__file__).parents[1] / "data" / "chelsea.jpg"
NEAR = {"atol": 1e-6, "rtol": 0}


def key() -> dict[str, str]:
    """Headers with the key; a new object for each call, because Triton's client writes into them."""
    return {"x-api-key": API_KEY}


def files(*images: bytes) -> np.ndarray:
    return np.array([[image] for image in images], object)


def post(server: LiveServer, path: str, content: bytes, **headers: str) -> Any:
    answer = httpx.post(server.url + path, content=content, headers={**key(), **headers}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()
