"""OpenAI's own client, synchronous and asynchronous."""

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.clients.conftest import API_KEY
from tests.live.conftest import LiveServer, Start
from tests.support.clients import grey
from tests.support.fake_server import POISON
from tests.support.gate import FileGate
from tests.support.images import encoded

KEY = {"x-api-key": API_KEY}
CAT = "https://example.org/cat.jpg"
NEAR = {"atol": 1e-6, "rtol": 0}


def uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


WHITE = uri(grey(255))


@pytest.fixture(scope="session")
def images(photographs: Any) -> list[bytes]:
    return [encoded(photographs[name].resize((300, 260)), "JPEG") for name in ("astronaut", "chelsea", "coffee")]


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
        yield client


def embed(server: LiveServer, images: list[bytes], query: str = "") -> np.ndarray:
    """What POST /embed answers."""
    files = [("image", ("f", image)) for image in images]
    response = httpx.post(f"{server.url}/embed?{query}", files=files, headers=KEY, timeout=60)
    return np.array(response.raise_for_status().json()["embeddings"], np.float32)


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], np.float32)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}], ids=["silent base64", "float"])
@pytest.mark.parametrize(
    ("extra", "query"), [({}, ""), ({"pool": "cls", "normalize": True, "modality": "image"}, "pool=cls&normalize=true")]
)
def test_the_vectors_of_embed(
    server: LiveServer,
    client: openai.OpenAI,
    images: list[bytes],
    options: dict[str, Any],
    extra: dict[str, Any],
    query: str,
) -> None:
    answer = client.embeddings.create(model="mae_tiny", input=[*map(uri, images)], extra_body=extra, **options)
    np.testing.assert_allclose(vectors(answer), embed(server, images, query), **NEAR)
    assert answer.model.startswith("mae_tiny@") and answer.usage.total_tokens == 3 * 196


def test_an_explicit_base64_stays_a_text(server: LiveServer, client: openai.OpenAI, images: list[bytes]) -> None:
    answer = client.embeddings.create(model="mae_tiny", input=uri(images[0]), encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(str(answer.data[0].embedding)), "<f4")
    np.testing.assert_allclose(decoded, embed(server, images[:1])[0], **NEAR)


def test_shapes_that_the_client_passes_on(server: LiveServer, client: openai.OpenAI, images: list[bytes]) -> None:
    part = {"type": "image_url", "image_url": {"url": uri(images[1])}}
    shapes: list[Any] = [
        base64.b64encode(images[1]).decode(),
        {"image": uri(images[1])},
        [{"role": "user", "content": [part, {"type": "text", "text": "Represent the given image."}]}],
    ]
    for shape in shapes:
        answer = client.embeddings.create(model="mae_tiny", input=shape)
        np.testing.assert_allclose(vectors(answer), embed(server, images[1:2]), **NEAR)


def test_many_at_once(server: LiveServer, images: list[bytes]) -> None:
    async def main() -> list[openai.types.CreateEmbeddingResponse]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key=API_KEY) as client:  # without /v1
            inputs = [uri(images[index % 3]) for index in range(12)]
            return await asyncio.gather(*(client.embeddings.create(model="mae_tiny", input=one) for one in inputs))

    expected = embed(server, images)
    for index, answer in enumerate(asyncio.run(main())):
        np.testing.assert_allclose(vectors(answer)[0], expected[index % 3], **NEAR)


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id.startswith("mae_tiny@") and model.object == "model"
    assert client.models.retrieve("mae_tiny") == client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError, match="'org/other' is not served here") as raised:
        client.models.retrieve("org/other")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("arguments", "kind", "words", "code"),
    [
        ({"input": "a photo of two cats"}, openai.BadRequestError, "this model sees images only", "images_only"),
        (
            {"input": ["https://example.org/cat.jpg"]},
            openai.BadRequestError,
            "URLs are never fetched",
            "malformed_body",
        ),
        ({"input": uri(b"no image" * 9)}, openai.BadRequestError, "image 0 is no image", "undecodable_image"),
        ({"input": uri(grey(1)), "model": "other"}, openai.NotFoundError, "'other' is not served", "model_not_found"),
        (
            {"input": uri(grey(1)), "dimensions": 9},
            openai.UnprocessableEntityError,
            "no whitening",
            "invalid_parameter",
        ),
        ({"input": [uri(grey(1))] * 65}, openai.APIStatusError, "more than 64 images", "too_many_images"),
    ],
)
def test_refusals_are_the_clients_exceptions(
    client: openai.OpenAI, arguments: dict[str, Any], kind: type[openai.APIStatusError], words: str, code: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        client.embeddings.create(**{"model": "mae_tiny", **arguments})
    assert raised.value.code == code and raised.value.type == "invalid_request_error"


def test_a_wrong_key(server: LiveServer) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError, match="a valid key is needed"),
    ):
        client.models.list()


def requests(server: LiveServer, code: str) -> float:
    return server.metric("mae_requests_total", endpoint="/v1/embeddings", code=code)


def test_a_poisoned_image_is_computed_once(poisonable: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{poisonable.url}/v1", api_key=API_KEY) as client:
        before = requests(poisonable, "500")
        with pytest.raises(openai.InternalServerError, match="the engine failed on image 0") as raised:
            client.embeddings.create(model="mae_tiny", input=uri(grey(POISON)))
        assert raised.value.code == "inference_failed" and raised.value.type == "server_error"
        poisonable.wait_for(lambda: requests(poisonable, "500") > before)
        assert requests(poisonable, "500") - before == 1, "the client would have tried twice more"
        answer = client.embeddings.create(model="mae_tiny", input=uri(grey(7)))
        assert answer.data[0].embedding == [7.0] * 192


def test_a_full_queue_is_tried_again(poisonable: LiveServer, gate: FileGate) -> None:
    whole_queue = [uri(grey(2))] * 8

    def embed(client: openai.OpenAI, images: list[str]) -> list[float]:
        return client.embeddings.create(model="mae_tiny", input=images).data[-1].embedding

    with openai.OpenAI(base_url=f"{poisonable.url}/v1", api_key=API_KEY) as client, ThreadPoolExecutor() as pool:
        before = requests(poisonable, "429")
        with gate.closed():
            first = pool.submit(embed, client, [uri(grey(1))])
            poisonable.wait_for_metric("mae_lanes_busy", 1)
            filler = pool.submit(embed, client, [uri(grey(1))] * 8)
            poisonable.wait_for_metric("mae_admitted_images", 8)
            with pytest.raises(openai.RateLimitError, match="images are waiting") as raised:
                embed(client.with_options(max_retries=0), whole_queue)
            assert raised.value.code == "queue_full" and raised.value.type == "rate_limit_error"
            patient = pool.submit(embed, client.with_options(max_retries=100), whole_queue)
            poisonable.wait_for(lambda: requests(poisonable, "429") - before >= 2)
        assert first.result() == filler.result() == [1.0] * 192
        assert patient.result() == [2.0] * 192


def test_a_server_that_loads_is_asked_again(start_server: Start, gate: FileGate) -> None:
    with ThreadPoolExecutor() as pool:
        with gate.closed():
            server = start_server(fake={"FAKE_GATE": gate.file}, ready=False, api_keys=API_KEY)

            def embed() -> list[float]:
                with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
                    return client.embeddings.create(model="mae_tiny", input=uri(grey(3))).data[0].embedding

            answer = pool.submit(embed)
            server.wait_for(lambda: requests(server, "503") == 1)
        assert answer.result() == [3.0] * 192
    server.wait_for(lambda: requests(server, "200") == 1)
    assert requests(server, "503") == 1, "the client has waited as long as Retry-After says"
