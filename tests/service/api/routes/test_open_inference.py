"""The Open Inference Protocol on the whole app, with an engine whose outputs repeat the first byte of each image."""

import io
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.config import MAEConfig
from tests.service.api.routes.conftest import Start
from tests.support.engines import SMALL, FakeEngine
from tests.support.metrics import sample

CLASSES = ("night", "day", "dusk")


class Bright(FakeEngine):
    """A head gives the class `day` more the brighter the image is; batches record all bytes that they got."""

    def __init__(self, **behaviour: Any) -> None:
        super().__init__(**behaviour)
        weight = np.zeros((3, 8), np.float32)
        weight[:, 0] = (-0.01, 0.01, 0)
        self.heads = Heads(Head(HeadConfig(pool="mean", classes=CLASSES), weight, np.zeros(3, np.float32)))
        self.info = self.info.model_copy(update={"head": self.heads.head.config if self.heads.head else None})
        self.received: list[tuple[Bytes, Indices]] = []

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        self.received.append((patches.copy(), visible_indices.copy()))
        return super().embed(lane, patches, visible_indices)

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        self.received.append((patches.copy(), visible_indices.copy()))
        return super().tokens(lane, patches, visible_indices)


@pytest.fixture
def engine() -> Bright:
    return Bright()


@pytest.fixture
def client(start: Start, engine: Bright) -> TestClient:
    return start(engine, engine.heads)


def picture(grey: int, side: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), grey).save(out, "PNG")
    return out.getvalue()


def bytes_input(images: Sequence[bytes], shape: list[int] | None = None) -> tuple[dict[str, Any], bytes]:
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    described = {"name": "image", "datatype": "BYTES", "shape": shape or [len(images), 1]}
    return {**described, "parameters": {"binary_data_size": len(data)}}, data


def array_input(name: str, array: np.ndarray) -> tuple[dict[str, Any], bytes]:
    kind = {"uint8": "UINT8", "int32": "INT32", "bool": "BOOL", "float32": "FP32"}[array.dtype.name]
    described = {"name": name, "datatype": kind, "shape": list(array.shape)}
    return {**described, "parameters": {"binary_data_size": array.nbytes}}, array.tobytes()


def infer(
    client: TestClient, model: str, *inputs: tuple[dict[str, Any], bytes], outputs: Any = (), **parameters: Any
) -> httpx.Response:
    content: dict[str, Any] = {"inputs": [described for described, _ in inputs], "parameters": parameters}
    if outputs:
        content["outputs"] = outputs
    head = json.dumps(content).encode()
    return client.post(
        f"/v2/models/{model}/infer",
        content=b"".join([head, *(data for _, data in inputs)]),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def arrays(response: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer in JSON."""
    assert response.status_code == 200, response.text
    kinds = {"FP32": np.float32, "UINT8": np.uint8, "INT32": np.int32, "BYTES": object}
    return {
        output["name"]: np.array(output["data"], kinds[output["datatype"]]).reshape(output["shape"])
        for output in response.json()["outputs"]
    }


def patches_of(pixels: np.ndarray, size: int = 16) -> np.ndarray:
    """The patches of squares [B, S, S, 3], one by one: uint8 [B, N, P]."""
    cut = [
        [square[y : y + size, x : x + size].ravel() for y in range(0, 32, size) for x in range(0, 32, size)]
        for square in pixels
    ]
    return np.array(cut)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


# --- what the engine gets, and what comes back


def test_encoded_images_pixels_and_patches_reach_the_engine_alike(
    client: TestClient, engine: Bright, pixels: np.ndarray
) -> None:
    files = []
    for square in pixels:
        out = io.BytesIO()
        Image.fromarray(square).save(out, "PNG")
        files.append(out.getvalue())
    everything = np.tile(np.arange(4, dtype=np.int32), (3, 1))
    answers = [
        infer(client, "embed", bytes_input(files)),
        infer(client, "embed", bytes_input(files, [3])),
        infer(client, "embed", array_input("pixels", pixels)),
        infer(client, "embed", array_input("patches", patches_of(pixels)), array_input("positions", everything)),
    ]
    vectors = [arrays(answer)["embedding"] for answer in answers]
    assert vectors[0].shape == (3, 8)
    assert vectors[0][:, 0].tolist() == [float(square[0, 0, 0]) for square in pixels]
    assert all(np.array_equal(vectors[0], other) for other in vectors)
    assert len({answer.headers["x-mae-space"] for answer in answers}) == 1
    for number in range(0, len(engine.received)):
        images, _ = engine.received[number]
        assert all(any(np.array_equal(image, whole) for whole in patches_of(pixels)) for image in images)


def test_a_client_may_send_only_the_patches_that_may_be_seen(
    client: TestClient, engine: Bright, pixels: np.ndarray
) -> None:
    positions = np.array([[3, 1], [0, 2], [1, 2]], np.int32)
    visible = np.take_along_axis(patches_of(pixels), positions[..., None], axis=1)
    answer = infer(client, "tokens", array_input("patches", visible), array_input("positions", positions))
    outputs = arrays(answer)
    assert outputs["tokens"].shape == (3, 2, 8) and outputs["positions"].tolist() == positions.tolist()
    assert answer.headers["x-mae-space"].endswith(":tokens:region")
    got = {tuple(indices): patches for batch in engine.received for patches, indices in zip(*batch, strict=True)}
    for indices, patches in zip(positions, visible, strict=True):
        assert np.array_equal(got[tuple(indices)], patches)


def test_our_parameters_are_those_of_the_routes(client: TestClient, engine: Bright) -> None:
    image = picture(9)
    own = client.post("/embed?keep=0.5&seed=7&normalize=true", content=image)
    # a client may have to send numbers as strings
    answer = infer(client, "embed", bytes_input([image]), keep="0.5", seed=7, normalize=True)
    assert np.array_equal(arrays(answer)["embedding"], np.array(own.json()["embeddings"], np.float32))
    assert answer.headers["x-mae-space"] == own.headers["x-mae-space"] == answer.json()["parameters"]["space"]
    assert answer.headers["x-mae-seed"] == "7" and answer.json()["parameters"]["seed"] == 7
    assert answer.headers["x-mae-keep"] == own.headers["x-mae-keep"] == "0.5"
    assert answer.json()["parameters"]["keep"] == 0.5
    assert np.array_equal(engine.received[0][1], engine.received[1][1])


def test_tokens_say_which_patches_they_are_of(client: TestClient) -> None:
    own = client.post("/embed?pool=tokens&keep=0.5&seed=3", content=picture(9)).json()
    outputs = arrays(infer(client, "tokens", bytes_input([picture(9)]), keep=0.5, seed=3))
    assert outputs["positions"].tolist() == [own["positions"]]
    assert np.array_equal(outputs["tokens"], np.array(own["embeddings"], np.float32))


def test_probabilities_and_named_classes(client: TestClient) -> None:
    images = bytes_input([picture(200), picture(0)])
    probabilities = arrays(infer(client, "classify", images))["probabilities"]
    logits = np.array([[-2.0, 2, 0], [0, 0, 0]])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probabilities == pytest.approx(expected, rel=1e-5)
    asked = [{"name": "probabilities", "parameters": {"classification": 2}}]
    answer = infer(client, "classify", images, outputs=asked)
    assert answer.json()["outputs"][0]["datatype"] == "BYTES"
    named = arrays(answer)["probabilities"]
    assert [[name.split(":")[1:] for name in image] for image in named] == [
        [["1", "day"], ["2", "dusk"]],
        [["0", "night"], ["1", "day"]],
    ]
    assert float(named[0][0].split(":")[0]) == pytest.approx(expected[0, 1], abs=1e-6)


def test_a_reconstruction_by_seed_and_by_mask(client: TestClient, pixels: np.ndarray) -> None:
    own = client.post("/reconstruct?seed=5&mask_ratio=0.5", content=picture(9), headers={"accept": "application/json"})
    outputs = arrays(infer(client, "reconstruct", bytes_input([picture(9)]), seed=5, mask_ratio=0.5))
    assert outputs["mask"].tolist() == [own.json()["mask"]]
    assert np.array_equal(outputs["error"][0], np.array(own.json()["reconstructions"][0]["error"], np.float32))
    masks = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]], np.uint8)
    for mask in (masks, masks.astype(bool)):
        outputs = arrays(infer(client, "reconstruct", array_input("pixels", pixels), array_input("mask", mask)))
        assert np.array_equal(outputs["mask"], masks) and outputs["error"].shape == (3, 4)
        assert np.array_equal(outputs["pixels"], pixels)  # the fake engine predicts the image itself


def test_outputs_are_those_that_were_asked_for_in_their_order(client: TestClient) -> None:
    asked = [{"name": "mask", "parameters": {"binary_data": True}}, {"name": "error"}]
    answer = infer(client, "reconstruct", bytes_input([picture(9)]), outputs=asked, seed=1)
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    assert [output["name"] for output in head["outputs"]] == ["mask", "error"]
    assert len(answer.content) - length == 4 and len(head["outputs"][1]["data"]) == 4
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_picture_alone_is_a_request(client: TestClient) -> None:
    headers = {"Inference-Header-Content-Length": "0", "content-type": "application/x-www-form-urlencoded"}  # as curl
    answer = client.post("/v2/models/embed/infer", content=picture(9), headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == [9.0] * 8


def test_the_id_comes_back_and_the_name_and_version_are_those_of_the_request(client: TestClient) -> None:
    described = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [7] * 32 * 32 * 3}
    for path, name in (("embed", "embed"), ("embed/versions/1", "embed"), ("fake", "fake")):
        answer = client.post(f"/v2/models/{path}/infer", json={"id": "a b", "inputs": [described]}).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a b", name, "1")
    assert "id" not in client.post("/v2/models/embed/infer", json={"inputs": [described]}).json()


# --- what is described


def test_server_and_models_are_described(client: TestClient) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "mae-serve"
    assert server["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]
    assert client.get("/v2/models/embed").json() == {
        "name": "embed",
        "versions": ["1"],
        "platform": "mae-serve",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}],
    }
    outputs = {
        name: [(output["name"], output["shape"]) for output in client.get(f"/v2/models/{name}").json()["outputs"]]
        for name in ("tokens", "classify", "reconstruct", "fake")
    }
    assert outputs == {
        "tokens": [("tokens", [-1, -1, 8]), ("positions", [-1, -1])],
        "classify": [("probabilities", [-1, 3])],
        "reconstruct": [("pixels", [-1, 32, 32, 3]), ("error", [-1, 4]), ("mask", [-1, 4])],
        "fake": [("embedding", [-1, 8])],
    }
    assert client.get("/v2/models/reconstruct/config").json() == {
        "name": "reconstruct",
        "platform": "mae-serve",
        "max_batch_size": 64,
        "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [32, 32, 3]},
            {"name": "error", "data_type": "TYPE_FP32", "dims": [4]},
            {"name": "mask", "data_type": "TYPE_UINT8", "dims": [4]},
        ],
        "dynamic_batching": {},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
    }
    assert client.get("/v2/models/embed/versions/1/ready").json() == {"name": "embed", "ready": True}
    index = client.post("/v2/repository/index").json()
    assert [entry["name"] for entry in index] == ["embed", "tokens", "classify", "reconstruct", "fake"]
    assert {(entry["version"], entry["state"]) for entry in index} == {("1", "READY")}


def test_the_name_of_a_served_model_may_have_slashes(start: Start) -> None:
    engine = FakeEngine()
    engine.info = engine.info.model_copy(update={"model": "facebook/vit@base"})
    client = start(engine)
    for path in ("facebook/vit@base", "facebook/vit%40base"):  # as clients quote it
        assert client.get(f"/v2/models/{path}").json()["name"] == "facebook/vit@base"
        assert client.get(f"/v2/models/{path}/versions/1/ready").status_code == 200
        answer = infer(client, path, bytes_input([picture(3)]))
        assert answer.json()["model_name"] == "facebook/vit@base"
        assert arrays(answer)["embedding"][0, 0] == 3


def test_the_served_name_is_a_model_and_so_are_the_names_that_answers_have(start: Start) -> None:
    client = start(FakeEngine(), served_name="cats/v1")
    index = [entry["name"] for entry in client.post("/v2/repository/index").json()]
    assert index == ["embed", "tokens", "reconstruct", "cats/v1"]
    described = client.post("/embed", content=picture(3)).json()["model"]
    assert described == "cats/v1@000000000000"
    for name in ("cats/v1", described, "fake"):
        assert client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
        answer = infer(client, name, bytes_input([picture(3)]))
        assert answer.json()["model_name"] == name and arrays(answer)["embedding"][0, 0] == 3
    refused = client.get("/v2/models/cats")
    assert refused.status_code == 404 and "embed, tokens, reconstruct, cats/v1" in refused.json()["error"]


def test_a_model_without_head_and_decoder(start: Start) -> None:
    encoder: MAEConfig = SMALL.model_copy(update={"decoder_depth": 0})
    client = start(FakeEngine(config=encoder))
    assert [entry["name"] for entry in client.post("/v2/repository/index").json()] == ["embed", "tokens", "fake"]
    for name, words in (("classify", "classification head"), ("reconstruct", "no decoder")):
        for answer in (client.get(f"/v2/models/{name}"), infer(client, name, bytes_input([picture(1)]))):
            assert answer.status_code == 404 and words in answer.json()["error"]


def test_statistics_count_requests_images_and_batches(client: TestClient) -> None:
    before = client.get("/v2/models/embed/stats").json()["model_stats"]
    infer(client, "embed", bytes_input([picture(1), picture(2)]))
    infer(client, "embed", bytes_input([b"no image"]))
    infer(client, "tokens", bytes_input([picture(1)]))
    (after,) = client.get("/v2/models/embed/stats").json()["model_stats"]
    assert before[0]["inference_count"] == before[0]["inference_stats"]["success"]["count"] == 0
    assert after["inference_count"] == 2 and 1 <= after["execution_count"] <= 2
    times = after["inference_stats"]
    assert {name: times[name]["count"] for name in times} == {
        "success": 1,
        "fail": 1,
        "queue": 1,
        "compute_input": 1,
        "compute_infer": 1,
        "compute_output": 1,
    }
    for name in ("queue", "compute_input", "compute_infer"):  # of the slowest image each
        assert 0 < times[name]["ns"] <= times["success"]["ns"]
    assert times["compute_output"]["ns"] <= times["success"]["ns"] and times["fail"]["ns"] > 0
    names = [model["name"] for model in client.get("/v2/models/stats").json()["model_stats"]]
    assert names == ["embed", "tokens", "classify", "reconstruct"]


def test_requests_are_counted_by_the_template_of_their_path(client: TestClient) -> None:
    infer(client, "fake", bytes_input([picture(1), picture(2)]))
    infer(client, "nobody", bytes_input([picture(1)]))
    text = client.get("/metrics").text
    endpoint = "/v2/models/{name}/infer"
    assert sample(text, "mae_images_total", endpoint=endpoint) == 2
    assert sample(text, "mae_requests_total", endpoint=endpoint, code="404") == 1
    assert "nobody" not in text


# --- what is refused


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
    client = start(FakeEngine(before=lambda images: time.sleep(0.3)))
    for timeout in (50_000, "50000"):
        answer = infer(client, "embed", bytes_input([picture(1)]), timeout=timeout)
        assert answer.status_code == 504 and "Deadline Exceeded" in answer.json()["error"]
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


def test_health_says_ready_and_live_also_when_it_is_not(client: TestClient) -> None:
    assert client.get("/v2/health/ready").json() == {"state": "ready", "reason": "", "ready": True}
    assert client.get("/v2/health/live").json() == {"state": "ready", "reason": "", "live": True}
    service = client.app.state.service  # type: ignore[attr-defined]
    service._state.change("lost", "the engine is gone")
    for path, key in (("/v2/health/ready", "ready"), ("/v2/health/live", "live")):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.json() == {"state": "lost", "reason": "the engine is gone", key: False}
    answer = client.get("/v2/models/embed/ready")
    assert answer.status_code == 503 and "the engine is gone" in answer.json()["error"]


def test_a_poisoned_image_fails_in_a_sentence(start: Start) -> None:
    answer = infer(start(FakeEngine(not_a_number=9)), "embed", bytes_input([picture(9)]))
    assert answer.status_code in (500, 503) and isinstance(answer.json()["error"], str)
