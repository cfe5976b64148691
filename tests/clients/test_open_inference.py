"""Clients of the Open Inference Protocol: Triton's over HTTP, and curl."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from service.api.open_inference.tensors import Tensor, decode_values, encode_values
from tests.clients.conftest import API_KEY
from tests.clients.open_inference import CAT, NEAR, files, key, post
from tests.live.conftest import LiveServer, Start
from tests.support.clients import grey
from tests.support.fake_server import POISON
from tests.support.gate import FileGate


def host_of(server: LiveServer) -> str:
    return server.url.removeprefix("http://")


@pytest.fixture
def client(server: LiveServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(host_of(server)) as client:
        yield client


def tensor(name: str, array: np.ndarray, binary: bool = True) -> triton.InferInput:
    kind = {"O": "BYTES", "B": "UINT8", "i": "INT32", "?": "BOOL"}[array.dtype.char]
    described = triton.InferInput(name, list(array.shape), kind)
    described.set_data_from_numpy(array, binary_data=binary)
    return described


def error_of(call: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert str(caught.value).startswith(f"[{caught.value.status()}] ")  # fails where the error is no string
    return caught.value


def test_our_bytes_are_those_of_tritons_client() -> None:
    elements = [b"", b"\x00\xff", "Köln".encode(), bytes(70_000)]
    theirs = serialize_byte_tensor(np.array(elements, object)).item()
    assert encode_values(Tensor("x", "BYTES", (4,), elements)) == theirs
    assert decode_values("x", "BYTES", (4,), memoryview(theirs)) == elements
    assert list(deserialize_bytes_tensor(theirs)) == elements
    rng = np.random.default_rng(0)
    for dtype in ("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"):
        array = rng.integers(0, 2, (3, 5)).astype(dtype)
        sent = triton.InferInput("x", [3, 5], Tensor.of("x", array).datatype).set_data_from_numpy(array)
        raw = sent._get_binary_data()
        assert encode_values(Tensor.of("x", array)) == raw
        assert np.array_equal(decode_values("x", sent.datatype(), (3, 5), memoryview(raw)), array)


def test_what_triton_asks_about(client: triton.InferenceServerClient, server: LiveServer) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("embed") and client.is_model_ready("embed", "1")
    assert not client.is_model_ready("nobody") and not client.is_model_ready("embed", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    assert client.get_model_metadata("embed")["outputs"][0]["shape"] == [-1, 192]
    config = client.get_model_config("tokens")
    assert config["max_batch_size"] == 64 and config["output"][0]["dims"] == [-1, 192]
    names = [entry["name"] for entry in client.get_model_repository_index()]
    assert names == ["embed", "tokens", "reconstruct", "mae_tiny"]


def test_vectors_are_those_of_embed(client: triton.InferenceServerClient, server: LiveServer) -> None:
    cat, other = CAT.read_bytes(), grey(90)
    expected = [post(server, "/embed?normalize=true", image)["embeddings"][0] for image in (cat, other)]
    images = files(cat, other)
    for name in ("embed", "mae_tiny"):
        answer = client.infer(
            name, [tensor("image", images)], "1", request_id="7", headers=key(), parameters={"normalize": True}
        )
        np.testing.assert_allclose(answer.as_numpy("embedding"), expected, **NEAR)
        assert answer.get_response()["id"] == "7"
    as_json = triton.InferRequestedOutput("embedding", binary_data=False)
    answer = client.infer(
        "embed", [tensor("image", images)], outputs=[as_json], headers=key(), parameters={"normalize": True}
    )
    np.testing.assert_allclose(answer.as_numpy("embedding"), expected, **NEAR)


def test_tokens_and_reconstructions(client: triton.InferenceServerClient, server: LiveServer) -> None:
    own = post(server, "/embed?pool=tokens&keep=0.25&seed=3", CAT.read_bytes())
    answer = client.infer(
        "tokens", [tensor("image", files(CAT.read_bytes()))], headers=key(), parameters={"keep": "0.25", "seed": 3}
    )
    np.testing.assert_allclose(answer.as_numpy("tokens"), own["embeddings"], **NEAR)
    assert answer.as_numpy("positions").tolist() == [own["positions"]]
    own = post(server, "/reconstruct?seed=3", CAT.read_bytes(), accept="application/json")
    answer = client.infer(
        "reconstruct", [tensor("image", files(CAT.read_bytes()))], headers=key(), parameters={"seed": 3}
    )
    np.testing.assert_allclose(answer.as_numpy("error")[0], own["reconstructions"][0]["error"], **NEAR)
    assert answer.as_numpy("mask").tolist() == [own["mask"]]
    assert answer.as_numpy("pixels").shape == (1, 224, 224, 3)


def test_pixels_and_patches_give_the_vectors_of_the_image(client: triton.InferenceServerClient, golden: Any) -> None:
    squares = golden["images"][:2]
    answer = client.infer("embed", [tensor("pixels", squares)], headers=key())
    # the golden numbers are another implementation's
    np.testing.assert_allclose(answer.as_numpy("embedding"), golden["embed_mean"][:2], atol=1e-3)
    patches = squares.reshape(2, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(2, 196, 768)
    positions = np.tile(np.arange(196, dtype=np.int32), (2, 1))
    whole = client.infer("embed", [tensor("patches", patches), tensor("positions", positions)], headers=key())
    np.testing.assert_allclose(whole.as_numpy("embedding"), answer.as_numpy("embedding"), **NEAR)
    mask = tensor("mask", golden["mask"][:2])
    answer = client.infer("reconstruct", [tensor("pixels", squares), mask], headers=key())
    assert answer.as_numpy("mask").tolist() == golden["mask"][:2].tolist()
    removed = golden["mask"][:2].astype(bool)
    losses = [error[flags].mean() for error, flags in zip(answer.as_numpy("error"), removed, strict=True)]
    np.testing.assert_allclose(losses, golden["loss"][:2], rtol=1e-3)


def test_only_what_may_be_seen_is_sent(client: triton.InferenceServerClient, server: LiveServer, golden: Any) -> None:
    own = httpx.post(
        server.url + "/embed?pool=tokens&keep=0.25&seed=9", content=png(golden["images"][0]), headers=key()
    ).json()
    positions = np.array([own["positions"]], np.int32)
    patches = golden["images"][:1].reshape(1, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(1, 196, 768)[:, positions[0]]
    inputs = [tensor("patches", np.ascontiguousarray(patches)), tensor("positions", positions)]
    answer = client.infer("tokens", inputs, headers=key())
    np.testing.assert_allclose(answer.as_numpy("tokens"), own["embeddings"], **NEAR)


def png(square: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(square).save(out, "PNG")
    return out.getvalue()


def test_errors_are_tritons_exceptions_with_our_sentences(client: triton.InferenceServerClient) -> None:
    image = [tensor("image", files(CAT.read_bytes()))]
    refusals: list[tuple[str, str, Any]] = [
        ("401", "a valid key is needed", lambda: client.infer("embed", image)),
        ("404", "there is no model nobody", lambda: client.infer("nobody", image, headers=key())),
        ("404", "no classification head", lambda: client.infer("classify", image, headers=key())),
        ("422", "no such parameter", lambda: client.infer("embed", image, headers=key(), parameters={"view": "panel"})),
        ("400", "image 0 is no image", lambda: client.infer("embed", [tensor("image", files(b"x"))], headers=key())),
        (
            "415",
            "Content-Encoding",
            lambda: client.infer("embed", image, headers=key(), request_compression_algorithm="gzip"),
        ),
        ("504", "Deadline Exceeded", lambda: client.infer("embed", image, headers=key(), timeout=1)),
        ("400", "loads and unloads no models", lambda: client.load_model("embed", headers=key())),
        ("400", "shared memory", lambda: client.get_system_shared_memory_status(headers=key())),
        ("400", "traces and the log", lambda: client.get_log_settings(headers=key())),
    ]
    for status, message, call in refusals:
        error = error_of(call)
        assert error.status() == status and message in error.message()


def test_shared_memory_in_a_request_is_refused(client: triton.InferenceServerClient) -> None:
    described = triton.InferInput("pixels", [1, 224, 224, 3], "UINT8")
    described.set_shared_memory("region", 224 * 224 * 3)
    assert "send it in the body" in error_of(lambda: client.infer("embed", [described], headers=key())).message()


def test_statistics_count_what_was_sent(client: triton.InferenceServerClient, server: LiveServer) -> None:
    """What perf_analyzer does: the difference of two answers, whichever worker gives them."""

    def read() -> dict[str, Any]:
        [statistics] = client.get_inference_statistics("embed")["model_stats"]
        return dict(statistics)

    before = read()
    for _ in range(4):
        with triton.InferenceServerClient(host_of(server)) as other:  # a connection of its own, to any worker
            other.infer("embed", [tensor("image", files(grey(1), grey(2)))], headers=key())
    after = read()
    assert after["inference_count"] - before["inference_count"] == 8
    batches = after["execution_count"] - before["execution_count"]
    assert 4 <= batches <= 8
    for name in ("success", "queue", "compute_input", "compute_infer"):
        old, new = before["inference_stats"][name], after["inference_stats"][name]
        assert new["count"] - old["count"] == 4 and new["ns"] > old["ns"]


def test_requests_at_once_on_the_clients_own_connections(server: LiveServer) -> None:
    expected = {value: post(server, "/embed", grey(value))["embeddings"][0] for value in (10, 200)}
    with triton.InferenceServerClient(host_of(server), concurrency=8) as client:
        values = [10, 200] * 8
        pending = [
            client.async_infer("embed", [tensor("image", files(grey(value)))], headers=key()) for value in values
        ]
        for value, request in zip(values, pending, strict=True):
            vector = request.get_result().as_numpy("embedding")[0]
            np.testing.assert_allclose(vector, expected[value], **NEAR)


def test_a_poisoned_image_fails_alone_and_is_computed_once(poisonable: LiveServer) -> None:
    with triton.InferenceServerClient(host_of(poisonable)) as client:
        error = error_of(lambda: client.infer("embed", [tensor("image", files(grey(POISON)))], headers=key()))
        assert error.status() == "500" and "the engine failed on image 0" in error.message()
        answer = client.infer("embed", [tensor("image", files(grey(7)))], headers=key())
        assert answer.as_numpy("embedding")[0, 0] == 7
        too_many = tensor("image", files(*[grey(1)] * 9))
        assert error_of(lambda: client.infer("embed", [too_many], headers=key())).status() == "413"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_queue_and_a_drain(start_server: Start, gate: FileGate, workers: int) -> None:
    server = start_server(fake={"FAKE_GATE": gate.file}, max_batch=1, queue_images=1, http_workers=workers)

    def embed(shade: int) -> float:
        with triton.InferenceServerClient(host_of(server)) as client:
            return float(client.infer("embed", [tensor("image", files(grey(shade)))]).as_numpy("embedding")[0, 0])

    with ThreadPoolExecutor() as pool:
        with gate.closed():
            running = pool.submit(embed, 3)
            server.wait_for_metric("mae_lanes_busy", 1)
            waiting = pool.submit(embed, 4)
            server.wait_for_metric("mae_admitted_images", 1)
            full = error_of(lambda: embed(5))
            assert full.status() == "429" and "1 images are waiting and 1 more are too many" in full.message()
            server.process.terminate()

            def refuses_for_the_drain() -> bool:
                """A worker that does not know of the drain yet says that the queue is full."""
                refused = error_of(lambda: embed(5))
                return (refused.status(), refused.message()) == ("503", "the server is shutting down")

            server.wait_for(refuses_for_the_drain)
            with triton.InferenceServerClient(host_of(server)) as client:
                server.wait_for(lambda: not client.is_server_ready())
                assert client.is_server_live()
            draining = {"state": "draining", "reason": "", "ready": False}
            server.wait_for(lambda: httpx.get(server.url + "/v2/health/ready").json() == draining)
        assert (running.result(), waiting.result()) == (3, 4)
    assert server.process.wait(60) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_a_picture_as_it_is(server: LiveServer) -> None:
    command = ["curl", "-s", "-i", "-H", f"x-api-key: {API_KEY}", "-H", "Inference-Header-Content-Length: 0"]
    command += ["--data-binary", f"@{CAT}", f"{server.url}/v2/models/embed/infer"]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"inference-header-content-length: ")[2].split()[0])
    assert json.loads(body[:length])["outputs"][0]["shape"] == [1, 192]
    expected = post(server, "/embed", CAT.read_bytes())["embeddings"][0]
    np.testing.assert_allclose(np.frombuffer(body[length:], "<f4"), expected, **NEAR)
