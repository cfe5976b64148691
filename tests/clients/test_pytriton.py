"""PyTriton's client, which takes no NumPy from 2.0 on: it runs in an environment of its own, PYTRITON_PYTHON."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import API_KEY
from tests.live.conftest import LiveServer, Start
from tests.support.gate import FileGate

CAT = Path(__file__).parents[1] / "data" / "chelsea.jpg"
PYTHON = os.environ.get("PYTRITON_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="PYTRITON_PYTHON names no Python that has PyTriton")


@pytest.fixture(scope="module")
def slow(start_server: Start, gate: FileGate) -> LiveServer:
    """While the gate is closed, its batches take longer than a request may."""
    return start_server(fake={"FAKE_GATE": gate.file}, request_timeout_s=0.5, api_keys=API_KEY)


@pytest.fixture(scope="module")
def found(server: LiveServer, slow: LiveServer, gate: FileGate) -> dict[str, Any]:
    script = Path(__file__).with_name("pytriton_calls.py")
    command = [PYTHON, "-P", str(script), server.url, slow.url, API_KEY, str(CAT)]
    with gate.closed():
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_vectors_are_those_of_embed(server: LiveServer, found: dict[str, Any]) -> None:
    def own(path: str) -> list[float]:
        answer = httpx.post(server.url + path, content=CAT.read_bytes(), headers={"x-api-key": API_KEY})
        vector: list[float] = answer.json()["embeddings"][0]
        return vector

    np.testing.assert_allclose(found["batch"], [own("/embed?normalize=true")] * 2, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found["sample"], own("/embed"), atol=1e-6, rtol=0)
    assert found["pixels"] == [3, 192]
    assert found["outputs"] == {"pixels": [224, 224, 3], "error": [196], "mask": [196]}


def test_the_configuration_is_read(found: dict[str, Any]) -> None:
    assert found["max_batch_size"] == 64


def test_errors_are_its_exceptions_with_our_sentences(found: dict[str, Any]) -> None:
    assert "pool: Input should be" in found["refused"]
    assert "Deadline Exceeded: the answer was not ready in time" in found["late"] or "timeout" in found["late"].lower()
