"""The embedding routes of OpenAI's and Cohere's APIs beside POST /embed, on the whole app."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads, Whitening
from model.engines.base import ServedModel
from service.api.app import create_app
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.images import encoded

DRAW = np.random.default_rng(3)
HEADS = Heads(
    None, {"mean": Whitening(DRAW.normal(size=8).astype(np.float32), DRAW.normal(size=(8, 7)).astype(np.float32))}
)
WEIGHT = DRAW.normal(size=(768, 8))
FILES = [encoded(np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for n in range(3)]
URIS = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in FILES]
MODEL = "fake@000000000000"
OPENAI, COHERE = "/v1/embeddings", "/v2/embed"


class Projection(FakeEngine):
    """The mean vector is a projection of the visible patches' mean pixels; the cls vector is twice that."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        mean = np.asarray(patches.mean(axis=1) / 255 @ WEIGHT, dtype=np.float32)
        return np.stack([2 * mean, mean], axis=1)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(max_images=4, max_body_mb=1, api_keys=("k",))
    app = create_app(settings, lambda settings, progress: ServedModel(Projection(), HEADS))
    with TestClient(app, headers={"authorization": "Bearer k"}) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


def post(client: TestClient, path: str = OPENAI, **body: Any) -> httpx.Response:
    images = {"images": URIS} if path == COHERE else {"input": URIS}
    return client.post(path, json=body if {"input", "messages", "images", "inputs"} & set(body) else {**images, **body})


def embed(client: TestClient, query: str = "") -> np.ndarray:
    """What POST /embed answers: float32 [3, D']."""
    response = client.post(
        f"/embed?{query}", files=[("i", ("f", file)) for file in FILES], headers={"accept": "application/json"}
    )
    return np.array(response.raise_for_status().json()["embeddings"], np.float32)


def openai_vectors(response: httpx.Response) -> np.ndarray:
    data = response.raise_for_status().json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], np.float32)


PARAMETERS = [
    ({}, ""),
    ({"normalize": True}, "normalize=true"),
    ({"pool": "cls"}, "pool=cls"),
    ({"whiten": True, "normalize": True}, "whiten=true&normalize=true"),
    ({"keep": 0.5, "seed": 2**64 - 1}, f"keep=0.5&seed={2**64 - 1}"),
]


@pytest.mark.parametrize(("body", "query"), PARAMETERS)
def test_vectors_are_those_of_embed(client: TestClient, body: dict[str, Any], query: str) -> None:
    expected = embed(client, query)
    np.testing.assert_array_equal(openai_vectors(post(client, **body)), expected)
    cohere = post(client, COHERE, **body).raise_for_status().json()
    np.testing.assert_array_equal(np.array(cohere["embeddings"]["float"], np.float32), expected)


def test_dimensions(client: TestClient) -> None:
    expected = embed(client, "dimensions=3")
    assert expected.shape == (3, 3)
    np.testing.assert_array_equal(openai_vectors(post(client, dimensions=3)), expected)
    response = post(client, COHERE, output_dimension=3).json()
    np.testing.assert_array_equal(np.array(response["embeddings"]["float"], np.float32), expected)
    for none in (0, None):  # infinity's clients send 0
        np.testing.assert_array_equal(openai_vectors(post(client, dimensions=none)), embed(client))


def test_an_answer_in_openais_shape(client: TestClient) -> None:
    response = post(client, model=MODEL, keep=0.5, seed=7)
    content = response.json()
    assert set(content) == {"object", "data", "model", "usage", "space"}
    assert (content["object"], content["model"]) == ("list", MODEL)
    assert set(content["data"][0]) == {"object", "index", "embedding"} and content["data"][0]["object"] == "embedding"
    assert content["usage"] == {"prompt_tokens": 3 * 2, "total_tokens": 3 * 2}, "two of four patches, three images"
    assert content["space"] == response.headers["x-mae-space"] and content["space"].endswith("mean:keep=0.5")
    assert (response.headers["x-mae-seed"], response.headers["x-mae-model"]) == ("7", MODEL)
    assert response.headers["x-mae-keep"] == "0.5"
    assert "infer;dur=" in response.headers["server-timing"]


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    texts = [item["embedding"] for item in post(client, encoding_format="base64").json()["data"]]
    decoded = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in texts])
    np.testing.assert_array_equal(decoded, embed(client))
    float_too = post(client, encoding_format="float"), post(client, encoding_format=None)
    assert all(isinstance(response.json()["data"][0]["embedding"], list) for response in float_too)


def test_keys_that_clients_send_and_we_do_not_know_are_ignored(client: TestClient) -> None:
    unknown = {"user": "x", "input_type": "image", "task": "retrieval", "truncate": "END", "embedding_type": "float"}
    ours_elsewhere = {"dtype": "int8", "encoding": "base64", "on_error": "skip", "mask": "x"}
    np.testing.assert_array_equal(openai_vectors(post(client, **unknown, **ours_elsewhere)), embed(client))
    assert client.post(f"{OPENAI}?api-version=1", json={"input": URIS[0]}).status_code == 200
    assert post(client, COHERE, **unknown, **ours_elsewhere).status_code == 200
    assert client.post("/embed", json={"images": URIS, "user": "x"}).status_code == 422, "refused everywhere else"


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings/"])
def test_the_same_route_by_other_names(client: TestClient, path: str) -> None:
    np.testing.assert_array_equal(openai_vectors(client.post(path, json={"input": URIS})), embed(client))


def test_messages(client: TestClient) -> None:
    conversation = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URIS[1]}}]}]
    np.testing.assert_array_equal(openai_vectors(post(client, messages=conversation)), embed(client)[1:2])
    batch = [conversation, conversation]
    np.testing.assert_array_equal(openai_vectors(post(client, messages=batch)), embed(client)[[1, 1]])


@pytest.mark.parametrize("name", [MODEL, "fake", None, ""])
def test_names_of_the_served_model(client: TestClient, name: str | None) -> None:
    assert post(client, model=name).status_code == post(client, COHERE, model=name).status_code == 200


def test_models(client: TestClient) -> None:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mae-serve"}
    for path in ("/v1/models", "/models"):
        assert client.get(path).json() == {"object": "list", "data": [model]}
    for path in (f"/v1/models/{MODEL}", "/v1/models/fake", "/models/fake"):
        assert client.get(path).json() == model
    response = client.get("/v1/models/org/other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "'org/other'" in response.json()["error"]["message"]
    assert client.get("/v1/models", headers={"authorization": "Bearer no"}).status_code == 401


def test_the_served_name_is_one_of_the_names() -> None:
    app = create_app(Settings(served_name="cats/v1"), lambda settings, progress: ServedModel(Projection(), HEADS))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        [model] = client.get("/v1/models").json()["data"]
        assert model["id"] == "cats/v1@000000000000"
        for name in ("cats/v1", model["id"], "fake"):
            assert client.get(f"/v1/models/{name}").json() == model
            assert post(client, model=name).json()["model"] == model["id"]
        assert post(client, model="cats").status_code == 404


REFUSALS = [
    ({"model": "text-embedding-3-small"}, 404, "model_not_found", "model"),
    ({"modality": "text"}, 400, "images_only", "modality"),
    ({"input": ["a photo of a cat"]}, 400, "images_only", None),
    ({"input": [[1, 2, 3]]}, 400, "images_only", None),
    ({"input": ["https://example.org/cat.jpg"]}, 400, "malformed_body", None),
    ({"input": URIS, "messages": []}, 400, "malformed_body", "input"),
    ({"input": None}, 400, "malformed_body", "input"),
    ({"input": []}, 400, "no_images", None),
    ({"input": [base64.b64encode(bytes(99)).decode()]}, 400, "undecodable_image", None),
    ({"input": [*URIS, *URIS]}, 413, "too_many_images", None),
    ({"encoding_format": "bytes"}, 422, "invalid_parameter", "encoding_format"),
    ({"dimensions": 8}, 422, "invalid_parameter", "dimensions"),
    ({"dimensions": -1}, 422, "invalid_parameter", "dimensions"),
    ({"dimensions": 2, "whiten": False}, 422, "invalid_parameter", "dimensions"),
    ({"pool": "tokens"}, 422, "invalid_parameter", "pool"),
    ({"keep": 2}, 422, "invalid_parameter", "keep"),
    ({"keep": 0.01}, 422, "invalid_parameter", "keep"),
    ({"seed": -1}, 422, "invalid_parameter", "seed"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), REFUSALS)
def test_refusals_in_openais_shape(
    client: TestClient, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = post(client, **body)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error" and response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", [OPENAI, COHERE])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"json": [1]}, 400),
        ({"content": b"", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"{}", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415),
        ({"content": b"{}", "headers": {"content-type": "application/json", "content-encoding": "gzip"}}, 415),
        ({"json": {}, "headers": {"authorization": "Bearer no"}}, 401),
        ({"json": {}, "headers": {"accept": "text/csv"}}, 406),
        ({"content": bytes(1_000_001), "headers": {"content-type": "application/json"}}, 413),
    ],
)
def test_refusals_of_the_body(client: TestClient, path: str, request_: dict[str, Any], status: int) -> None:
    response = client.post(path, **request_)
    assert response.status_code == status
    content = response.json()
    message = content["message"] if path == COHERE else content["error"]["message"]
    assert message and (set(content) == {"message"} if path == COHERE else "type" in content["error"])


def test_the_order_of_refusals_within_a_body(client: TestClient) -> None:
    """Parameters, the model's name, what the model lacks, the number of images, then the images."""
    faults: list[tuple[str, dict[str, Any]]] = [
        ("invalid_parameter", {"keep": 2}),
        ("model_not_found", {"model": "other"}),
        ("invalid_parameter", {"dimensions": 8}),
        ("images_only", {"input": ["no image"]}),
    ]
    for index, (code, _) in enumerate(faults):
        body = {name: value for _, fault in reversed(faults[index:]) for name, value in fault.items()}
        assert post(client, **body).json()["error"]["code"] == code


# --- Cohere


def test_an_answer_in_coheres_shape(client: TestClient) -> None:
    response = client.post(COHERE, json={"images": URIS, "model": "fake"}, headers={"x-request-id": "mine"})
    content = response.json()
    assert set(content) == {"id", "response_type", "embeddings", "texts", "meta", "space"}
    assert (content["id"], content["response_type"], content["texts"]) == ("embd-mine", "embeddings_by_type", None)
    assert content["meta"] == {"api_version": {"version": "2"}, "billed_units": {"images": 3, "image_tokens": 12}}
    assert list(content["embeddings"]) == ["float"]


def test_coheres_types(client: TestClient) -> None:
    types = ["float", "base64", "int8", "uint8", "binary", "ubinary"]
    content = post(client, COHERE, embedding_types=types, output_dimension=7).json()
    vectors = {name: np.array(values) for name, values in content["embeddings"].items() if name != "base64"}
    expected = embed(client, "dimensions=7")
    np.testing.assert_array_equal(vectors["float"].astype(np.float32), expected)
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in content["embeddings"]["base64"]]
    np.testing.assert_array_equal(np.stack(decoded), expected)
    scales = np.array(content["scales"])[:, None]
    np.testing.assert_allclose(scales, np.abs(expected).max(axis=1, keepdims=True) / 127, rtol=1e-6)
    assert (np.abs(vectors["int8"] * scales - expected) <= 0.5001 * scales).all()
    np.testing.assert_array_equal(vectors["uint8"] - 128, vectors["int8"])
    signs = [[int("".join(str(int(value > 0)) for value in vector) + "0", 2)] for vector in expected]
    np.testing.assert_array_equal(vectors["ubinary"], signs)
    np.testing.assert_array_equal(vectors["binary"] + 128, signs)


def test_coheres_inputs(client: TestClient) -> None:
    inputs = [
        {"content": [{"type": "text", "text": "the product"}, {"type": "image_url", "image_url": {"url": uri}}]}
        for uri in URIS
    ]
    content = post(client, COHERE, inputs=inputs, input_type="image").json()
    np.testing.assert_array_equal(np.array(content["embeddings"]["float"], np.float32), embed(client))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"images": None, "texts": ["a cat"]}, 400, "images only"),
        ({"images": ["a cat"]}, 400, "images only"),
        ({"images": URIS, "inputs": []}, 400, 'both "images" and "inputs"'),
        ({"images": None}, 400, '"images" or'),
        ({"images": URIS[0]}, 400, "must be a list"),
        ({"images": ["https://example.org/x"]}, 400, "URLs are never fetched"),
        ({"embedding_types": ["binary"]}, 422, "signs of whitened vectors"),
        ({"embedding_types": ["float8"]}, 422, "embedding_types: Input"),
        ({"embedding_types": []}, 422, "embedding_types"),
        ({"output_dimension": 8}, 422, "7 axes"),
        ({"model": "embed-v4.0"}, 404, "embed-v4.0"),
    ],
)
def test_refusals_in_coheres_shape(client: TestClient, body: dict[str, Any], status: int, words: str) -> None:
    response = post(client, COHERE, **body)
    assert (response.status_code, set(response.json())) == (status, {"message"})
    assert words in response.json()["message"]


def test_both_are_counted_under_their_paths(client: TestClient) -> None:
    def images(path: str) -> float:
        text = client.get("/metrics").text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == "mae_images_total" and s.labels["endpoint"] == path)

    for path in (OPENAI, "/embeddings", COHERE):
        before = images(path)
        post(client, path).raise_for_status()
        assert images(path) - before == 3
