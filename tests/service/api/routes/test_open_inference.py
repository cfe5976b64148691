"""Inference by the Open Inference Protocol on the whole app: what the engine gets, and what comes back."""

import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.support.open_inference import Bright, array_input, arrays, bytes_input, infer, picture


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
