"""What the Open Inference Protocol refuses: inputs, parameters, masks, keys, and in which order."""

import re
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.service.api.routes.conftest import Start
from tests.support.engines import FakeEngine
from tests.support.open_inference import Bright, array_input, bytes_input, infer, picture
from tests.support.queueing import Gate

BAD_INPUTS: dict[str, tuple[str, list[tuple[dict[str, Any], bytes]], str]] = {
    "no input": ("embed", [], "given are none"),
    "an unknown input": ("embed", [array_input("x", np.zeros((1, 2), np.uint8))], "given are x"),
    "two forms": (
        "embed",
        [bytes_input([b"a"]), array_input("pixels", np.zeros((1, 32, 32, 3), np.uint8))],
        "given are image, pixels",
    ),
    "patches without positions": ("embed", [array_input("patches", np.zeros((1, 1, 768), np.uint8))], "given are"),
    "a shape of images": ("embed", [bytes_input([b"a", b"b"], [1, 2])], r"must be BYTES \[B\] or \[B, 1\]"),
    "a type of images": ("embed", [array_input("image", np.zeros((1, 9), np.uint8))], "must be BYTES"),
    "another square": ("embed", [array_input("pixels", np.zeros((1, 16, 16, 3), np.uint8))], r"\[any, 32, 32, 3\]"),
    "floats": ("embed", [array_input("pixels", np.zeros((1, 32, 32, 3), np.float32))], "must be UINT8"),
    "another patch": (
        "embed",
        [array_input("patches", np.zeros((1, 1, 9), np.uint8)), array_input("positions", np.zeros((1, 1), np.int32))],
        r"\[any, any, 768\]",
    ),
    "too many patches": (
        "embed",
        [array_input("patches", np.zeros((1, 5, 768), np.uint8)), array_input("positions", np.zeros((1, 5), np.int32))],
        "1 to 4",
    ),
    "no patch": (
        "embed",
        [array_input("patches", np.zeros((1, 0, 768), np.uint8)), array_input("positions", np.zeros((1, 0), np.int32))],
        "0 patches",
    ),
    "other positions": (
        "embed",
        [array_input("patches", np.zeros((1, 2, 768), np.uint8)), array_input("positions", np.zeros((1, 1), np.int32))],
        r"must be INT32 \[1, 2\]",
    ),
    "a position beyond": (
        "embed",
        [array_input("patches", np.zeros((1, 1, 768), np.uint8)), array_input("positions", np.array([[4]], np.int32))],
        "numbered 0 to 3",
    ),
    "a negative position": (
        "embed",
        [array_input("patches", np.zeros((1, 1, 768), np.uint8)), array_input("positions", np.array([[-1]], np.int32))],
        "numbered 0 to 3",
    ),
    "a position twice": (
        "embed",
        [
            array_input("patches", np.zeros((2, 2, 768), np.uint8)),
            array_input("positions", np.array([[0, 1], [2, 2]], np.int32)),
        ],
        "image 1 is given twice",
    ),
    "patches to classify": (
        "classify",
        [array_input("patches", np.zeros((1, 1, 768), np.uint8)), array_input("positions", np.zeros((1, 1), np.int32))],
        "image or pixels:",
    ),
    "a mask to embed": ("embed", [bytes_input([b"a"]), array_input("mask", np.zeros((1, 4), np.uint8))], "image, mask"),
    "another mask": (
        "reconstruct",
        [bytes_input([b"a"]), array_input("mask", np.zeros((1, 5), np.uint8))],
        r"\[1, 4\]",
    ),
    "no flags": ("reconstruct", [bytes_input([b"a"]), array_input("mask", np.full((1, 4), 2, np.uint8))], "0 and 1"),
    "no image": ("embed", [bytes_input([])], "no image in the body"),
    "an empty image": ("embed", [bytes_input([picture(1), b""])], "image 1 has no bytes"),
    "a broken image": ("embed", [bytes_input([picture(1), b"GIF"])], "image 1 is no image"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs_that_are_none(client: TestClient, name: str) -> None:
    model, inputs, message = BAD_INPUTS[name]
    answer = infer(client, model, *inputs)
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert re.search(message, answer.json()["error"])


BAD_PARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    ("embed", {"pool": "tokens"}, "ask the model tokens"),
    ("embed", {"pool": "max"}, "pool: "),
    ("embed", {"on_error": "skip"}, "on_error: the model has no such parameter"),
    ("embed", {"keep": 0}, "keep: "),
    ("embed", {"keep": 0.01}, "leaves none"),
    ("embed", {"whiten": True}, "no whitening"),
    ("tokens", {"pool": "cls"}, "pool: the model has no such parameter"),
    ("classify", {"top_k": 2}, "top_k: the model has no such parameter: it takes none"),
    ("reconstruct", {"mask_ratio": 0}, "mask_ratio: "),
    ("reconstruct", {"view": "panel"}, "view: "),
    ("embed", {"timeout": "soon"}, "timeout: it must be a whole number of microseconds"),
    ("embed", {"timeout": "9" * 500}, "timeout: it must be a whole number of microseconds"),
    ("embed", {"binary_data_output": "false"}, "binary_data_output: it must be true or false"),
]


@pytest.mark.parametrize(("model", "parameters", "message"), BAD_PARAMETERS)
def test_parameters_that_are_none(client: TestClient, model: str, parameters: dict[str, Any], message: str) -> None:
    answer = infer(client, model, bytes_input([picture(1)]), **parameters)
    assert answer.status_code == 422 and message in answer.json()["error"]


def test_an_error_does_not_repeat_thousands_of_names(client: TestClient) -> None:
    inputs = [array_input(f"input{number}", np.zeros((1, 1), np.uint8)) for number in range(5000)]
    answer = infer(client, "embed", *inputs)
    assert answer.status_code == 400 and "given are input0" in answer.json()["error"] and len(answer.content) < 500


def test_parameters_that_belong_to_the_protocol_change_nothing(client: TestClient) -> None:
    ignored = {"sequence_id": 3, "sequence_start": True, "priority": 1, "triton_enable_empty_final_response": True}
    assert infer(client, "embed", bytes_input([picture(1)]), **ignored).status_code == 200


def test_patches_that_are_sent_go_with_no_choice_of_patches(client: TestClient) -> None:
    inputs = (
        array_input("patches", np.zeros((1, 1, 768), np.uint8)),
        array_input("positions", np.zeros((1, 1), np.int32)),
    )
    for name, value in (("keep", 0.5), ("min_keep", 0.5), ("seed", 1)):
        answer = infer(client, "embed", *inputs, **{name: value})
        assert answer.status_code == 422 and f"{name} cannot be given" in answer.json()["error"]


def test_masks_of_one_request_remove_equally_many_patches_and_stand_alone(client: TestClient) -> None:
    images = bytes_input([picture(1), picture(2)])
    for flags in ([[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 1]] * 2, [[0, 0, 0, 0]] * 2):
        answer = infer(client, "reconstruct", images, array_input("mask", np.array(flags, np.uint8)))
        assert answer.status_code == 422 and answer.json()["error"].startswith("mask: ")
    mask = array_input("mask", np.array([[1, 0, 0, 0]] * 2, np.uint8))
    answer = infer(client, "reconstruct", images, mask, seed=1)
    assert answer.status_code == 422 and "seed cannot be given" in answer.json()["error"]


def test_outputs_that_the_model_has_not(client: TestClient) -> None:
    answer = infer(client, "embed", bytes_input([picture(1)]), outputs=[{"name": "tokens"}])
    assert answer.status_code == 422
    assert answer.json()["error"] == "outputs: the model embed has no tokens: it has embedding"
    asked = [{"name": "embedding", "parameters": {"classification": 2}}]
    assert infer(client, "embed", bytes_input([picture(1)]), outputs=asked).status_code == 422


def test_too_many_images_are_refused_before_they_are_decoded(start: Start) -> None:
    client = start(FakeEngine(), max_images=2)
    answer = infer(client, "embed", bytes_input([b"no image"] * 3))
    assert answer.status_code == 413 and "2 images" in answer.json()["error"]


def test_a_timeout_of_the_client_is_a_deadline(start: Start) -> None:
    gate = Gate()
    client = start(FakeEngine(before=gate), request_timeout_s=600)
    for timeout in (50_000, "50000"):
        answer = infer(client, "embed", bytes_input([picture(1)]), timeout=timeout)
        assert answer.status_code == 504 and "Deadline Exceeded" in answer.json()["error"]
    gate.opened.set()
    assert infer(client, "embed", bytes_input([picture(1)]), timeout=0).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/embed/versions/2", 404),
        ("GET", "/v2/models/embed/infer", 405),
        ("GET", "/v2/nothing", 404),
        ("DELETE", "/v2/models/embed", 405),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/embed/versions/2/infer", 404),
        ("POST", "/v2/models/embed/infer?keep=1", 422),
        ("POST", "/v2/repository/models/embed/load", 400),
        ("POST", "/v2/repository/models/embed/unload", 400),
        ("GET", "/v2/trace/setting", 400),
        ("POST", "/v2/models/embed/trace/setting", 400),
        ("GET", "/v2/logging", 400),
        ("GET", "/v2/systemsharedmemory/status", 400),
        ("POST", "/v2/cudasharedmemory/region/r/register", 400),
    ],
)
def test_every_refusal_is_one_sentence(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and isinstance(answer.json()["error"], str)


def test_the_order_of_refusals(start: Start, engine: Bright) -> None:
    client = start(engine, engine.heads, api_keys=("right",), max_body_mb=0.01, max_inflight_mb=1)
    service = client.app.state.service  # type: ignore[attr-defined]
    faults = {
        "key": (401, "a valid key"),
        "query": (422, "unknown parameter"),
        "admission": (503, "shutting down"),
        "lacks": (404, "no model nobody"),
        "encoding": (415, "Content-Encoding"),
        "length": (413, "more than 10000 bytes"),
        "body": (400, "no JSON"),
    }
    for first, (status, message) in enumerate(faults.values()):
        present = list(faults)[first:]
        service._state.change("draining" if "admission" in present else "ready")
        headers = {
            "x-api-key": "wrong" if "key" in present else "right",
            "content-encoding": "gzip" if "encoding" in present else "identity",
        }
        name = "nobody" if "lacks" in present else "embed"
        query = "?x=1" if "query" in present else ""
        body = b"{" + bytes(10_000 if "length" in present else 0)
        answer = client.post(f"/v2/models/{name}/infer{query}", content=body, headers=headers)
        service._state.change("ready")
        assert answer.status_code == status, present
        assert message in answer.json()["error"]


def test_an_inference_needs_a_key_and_a_description_none(start: Start) -> None:
    client = start(FakeEngine(), api_keys=("right",))
    refused = infer(client, "embed", bytes_input([picture(1)]))
    assert refused.status_code == 401 and "a valid key is needed" in refused.json()["error"]
    raw = {"Inference-Header-Content-Length": "0"}
    for header in ({"x-api-key": "right"}, {"authorization": "Bearer right"}, {"triton-access-token": "right"}):
        answer = client.post("/v2/models/embed/infer", content=picture(1), headers=raw | header)
        assert answer.status_code == 200
    for path in ("", "/health/live", "/health/ready", "/models/embed", "/models/embed/config", "/models/embed/ready"):
        assert client.get(f"/v2{path}").status_code == 200
    assert client.get("/v2/models/stats").status_code == client.post("/v2/repository/index").status_code == 200


def test_a_poisoned_image_fails_in_a_sentence(start: Start) -> None:
    answer = infer(start(FakeEngine(not_a_number=9)), "embed", bytes_input([picture(9)]))
    assert answer.status_code in (500, 503) and isinstance(answer.json()["error"], str)
