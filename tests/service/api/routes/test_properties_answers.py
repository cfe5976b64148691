"""Any vectors come back from any form of an answer."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from tests.support.app import serve_app
from tests.support.engines import FakeEngine
from tests.support.images import encoded

# The threads of the app draw random numbers, also while hypothesis makes the next example.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
FILES = [encoded(Image.new("RGB", (32, 32), (level, level, level))) for level in range(3)]
VECTORS = st.lists(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8),
    min_size=1,
    max_size=3,
)


class TableEngine(FakeEngine):
    """Gives each image the vector of its grey level, as its cls token."""

    table: Floats

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        vectors = super().embed(lane, patches, visible_indices)
        vectors[:, 0] = self.table[patches[:, 0, 0]]
        return vectors


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[TestClient, TableEngine]]:
    engine = TableEngine()
    with serve_app(engine) as client:
        yield client, engine


@given(vectors=VECTORS)
def test_any_vectors(served: tuple[TestClient, TableEngine], vectors: list[list[float]]) -> None:
    client, engine = served
    engine.table = table = np.array(vectors, np.float32)
    files = [("image", (f"{number}.png", file, "image/png")) for number, file in enumerate(FILES[: len(table)])]

    def embed(query: str, accept: str = "application/json") -> tuple[object, bytes, dict[str, str]]:
        answer = client.post(f"/embed?pool=cls&{query}", files=files, headers={"accept": accept})
        assert answer.status_code == 200, answer.text
        content = answer.json() if accept == "application/json" else None
        return content, answer.content, dict(answer.headers)

    with np.errstate(over="ignore"):
        halves = np.clip(table, -65504, 65504).astype(np.float16)
    for dtype, expected in (("float32", table), ("float16", halves)):
        listed = embed(f"dtype={dtype}")[0]["embeddings"]  # type: ignore[index]
        assert np.array(listed, expected.dtype).tobytes() == expected.tobytes()
        texts = embed(f"dtype={dtype}&encoding=base64")[0]["embeddings"]  # type: ignore[index]
        assert [base64.b64decode(text) for text in texts] == [vector.tobytes() for vector in expected]
        array = np.load(io.BytesIO(embed(f"dtype={dtype}", "application/x-npy")[1]), allow_pickle=False)
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes()
        _, octets, headers = embed(f"dtype={dtype}", "application/octet-stream")
        shape = [int(size) for size in headers["x-mae-shape"].split(",")]
        assert octets == expected.tobytes() and shape == list(expected.shape)


@given(vectors=VECTORS)
def test_int8_is_within_half_a_step(served: tuple[TestClient, TableEngine], vectors: list[list[float]]) -> None:
    client, engine = served
    engine.table = table = np.array(vectors, np.float32)
    files = [("image", (f"{number}.png", file, "image/png")) for number, file in enumerate(FILES[: len(table)])]
    answer = client.post("/embed?pool=cls&dtype=int8", files=files).raise_for_status().json()
    array = client.post("/embed?pool=cls&dtype=int8", files=files, headers={"accept": "application/x-npy"})
    scales = [float(scale) for scale in array.headers["x-mae-scales"].split(",")]
    assert np.array_equal(np.float32(scales), np.float32(answer["scales"]))
    numbers = np.load(io.BytesIO(array.content), allow_pickle=False)
    assert numbers.dtype == np.int8 and numbers.tolist() == answer["embeddings"]
    for vector, multiples, scale in zip(table.astype(float), numbers.astype(float), scales, strict=True):
        largest = np.abs(vector).max()
        assert np.abs(vector - multiples * scale).max() <= 0.5001 * largest / 127 + 1e-44


@given(vectors=VECTORS)
def test_openai_s_vectors(served: tuple[TestClient, TableEngine], vectors: list[list[float]]) -> None:
    client, engine = served
    engine.table = table = np.array(vectors, np.float32)
    images = [base64.b64encode(file).decode() for file in FILES[: len(table)]]
    for encoding in ("float", "base64"):
        body = {"input": images, "encoding_format": encoding, "pool": "cls"}
        data = client.post("/v1/embeddings", json=body).raise_for_status().json()["data"]
        assert [one["index"] for one in data] == list(range(len(table)))
        for one, vector in zip(data, table, strict=True):
            value = one["embedding"]
            own = np.frombuffer(base64.b64decode(value), "<f4") if encoding == "base64" else np.float32(value)
            assert own.tobytes() == vector.tobytes()
