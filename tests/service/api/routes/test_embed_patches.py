"""POST /embed of a part of the patches: of a region, and of fewer patches under load."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from tests.support.images import encoded
from tests.support.metrics import sample
from tests.support.projection import CENTRE, MATRIX, PICTURES, Projection, post, serve, tokens_of
from tests.support.queueing import Gate


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serve(Projection()) as client:
        yield client


def draw_mask(*inside: int) -> bytes:
    """A picture of the size of PICTURES, white in the patches `inside`, black in the others."""
    mask = np.zeros((4, 16, 16), np.uint8)
    mask[list(inside)] = 255
    return encoded(np.block([[mask[0], mask[1]], [mask[2], mask[3]]]))


def post_region(client: TestClient, picture: np.ndarray, query: str = "", mask: bytes | None = None) -> httpx.Response:
    files = [("image", ("f", encoded(picture)))] + ([] if mask is None else [("mask", ("m", mask))])
    return client.post(f"/embed?{query}", files=files)


@pytest.mark.parametrize("inside", [[0], [1, 2], [0, 1, 3]])
def test_a_region_is_the_patches_that_are_named_or_white(client: TestClient, inside: list[int]) -> None:
    picture = PICTURES[0]
    patches = ",".join(map(str, reversed(inside)))
    as_json = {
        "images": [base64.b64encode(encoded(picture)).decode()],
        "mask": base64.b64encode(draw_mask(*inside)).decode(),
    }
    for response in (
        post_region(client, picture, f"patches={patches}"),
        post_region(client, picture, mask=draw_mask(*inside)),
        client.post("/embed", json=as_json),
    ):
        content = response.json()
        np.testing.assert_allclose(content["embeddings"], [tokens_of(picture)[inside].mean(axis=0)], atol=1e-4)
        assert (content["keep"], content["positions"], content["count"]) == (len(inside) / 4, inside, 1)
        assert float(response.headers["x-mae-keep"]) == len(inside) / 4
        assert content["space"] == response.headers["x-mae-space"] and content["space"].endswith(":mean:region")
        assert "seed" not in content and "x-mae-seed" not in response.headers


def test_the_tokens_of_a_region_come_with_their_positions(client: TestClient) -> None:
    for response in (
        post_region(client, PICTURES[1], "pool=tokens&patches=3,0"),
        post_region(client, PICTURES[1], "pool=tokens", draw_mask(0, 3)),
    ):
        content = response.json()
        np.testing.assert_allclose(content["embeddings"], [tokens_of(PICTURES[1])[[0, 3]]], atol=1e-4)
        assert (content["positions"], content["grid"]) == ([0, 3], [2, 2])


def test_what_is_done_to_vectors_is_done_to_those_of_a_region(client: TestClient) -> None:
    content = post_region(client, PICTURES[2], "dimensions=3&normalize=true", draw_mask(1)).json()
    projected = ((tokens_of(PICTURES[2])[1] - CENTRE) @ MATRIX.astype(np.float64))[:3]
    np.testing.assert_allclose(content["embeddings"], [projected / np.linalg.norm(projected)], atol=1e-4)
    assert content["space"].endswith(":mean:whitened:dimensions=3:unit:region")


def test_a_region_of_all_patches_is_the_image(client: TestClient) -> None:
    whole = post_region(client, PICTURES[0]).json()
    for answer in (
        post_region(client, PICTURES[0], "patches=0,1,2,3"),
        post_region(client, PICTURES[0], mask=draw_mask(0, 1, 2, 3)),
    ):
        assert answer.json() == whole and answer.headers["x-mae-keep"] == "1"


def test_every_image_of_a_request_has_the_same_patches(client: TestClient) -> None:
    content = post(client, "patches=2").json()
    np.testing.assert_allclose(content["embeddings"], [tokens_of(picture)[2] for picture in PICTURES], atol=1e-4)


@pytest.mark.parametrize(
    ("query", "mask", "named"),
    [
        ("patches=4", None, "patches"),
        ("patches=1&keep=0.5", None, "keep"),
        ("patches=1&seed=1", None, "seed"),
        ("patches=1&min_keep=0.5", None, "min_keep"),
        ("patches=1", draw_mask(1), "mask"),
        ("keep=0.5", draw_mask(1), "keep"),
        ("seed=1", draw_mask(1), "seed"),
        ("min_keep=0.5", draw_mask(1), "min_keep"),
        ("", draw_mask(), "mask"),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_the_meaning_is_said(
    client: TestClient, query: str, mask: bytes | None, named: str
) -> None:
    response = post_region(client, PICTURES[0], query, mask)
    error = response.json()["error"]
    assert (response.status_code, error["details"]) == (422, {"parameter": named})
    assert error["message"].startswith(f"{named}: ")
    assert error["message"].endswith("name what is encoded, the opposite of /reconstruct")


def test_a_mask_goes_with_one_image(client: TestClient) -> None:
    files = [("image", ("f", encoded(picture))) for picture in PICTURES[:2]] + [("mask", ("m", draw_mask(1)))]
    error = client.post("/embed", files=files).json()["error"]
    assert error["details"] == {"parameter": "mask"} and "the opposite of /reconstruct" in error["message"]
    too_large = post_region(client, PICTURES[0], mask=encoded(np.zeros((9, 9), np.uint8)))
    assert (too_large.status_code, too_large.json()["error"]["details"]) == (422, {"parameter": "mask"})


def test_the_description_says_what_a_region_is(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/embed"]["post"]
    [patches] = [parameter for parameter in operation["parameters"] if parameter["name"] == "patches"]
    assert "patches to encode" in patches["description"] and "opposite of /reconstruct" in patches["description"]
    for kind, keys in (("multipart/form-data", "mask"), ("application/json", "mask")):
        mask = operation["requestBody"]["content"][kind]["schema"]["properties"][keys]
        assert "encoded, the opposite of /reconstruct" in mask["description"]


# --- fewer patches under load


def test_without_load_nothing_is_left_out(client: TestClient) -> None:
    asked, plain = post(client, "min_keep=0.25"), post(client)
    assert asked.json() == plain.json() and asked.headers["x-mae-keep"] == plain.headers["x-mae-keep"] == "1"
    assert sample(client.get("/metrics").text, "mae_degraded_images_total") == 0


def test_under_load_fewer_patches_are_encoded_instead_of_a_refusal() -> None:
    gate = Gate()
    engine = Projection(preferred_batch=1, before=gate)
    with serve(engine, queue_images=3) as client, ThreadPoolExecutor(3) as pool:
        held = pool.submit(post_region, client, PICTURES[0])
        assert gate.reached.wait(60)
        waiting = pool.submit(post_region, client, PICTURES[1])
        while sample(client.get("/metrics").text, "mae_admitted_images") != 1:
            time.sleep(0.01)
        assert post(client).status_code == 429  # three images for a room of two
        degraded = pool.submit(post, client, "min_keep=0.25")
        while sample(client.get("/metrics").text, "mae_queue_images") != 4:
            time.sleep(0.01)
        assert sample(client.get("/metrics").text, "mae_admitted_images") == 1 + 3 / 2
        refused = post(client, "min_keep=0.25")  # three quarters for a room of a half
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        gate.opened.set()
        assert held.result().json()["keep"] == waiting.result().json()["keep"] == 1
        response = degraded.result()
        content = response.json()
        assert (content["keep"], response.headers["x-mae-keep"]) == (0.5, "0.5")
        assert content["space"] == response.headers["x-mae-space"] and content["space"].endswith(":mean:keep=0.5")
        assert response.headers["x-mae-seed"] == str(content["seed"])
        assert content == post(client, f"keep=0.5&seed={content['seed']}").json()
        metrics = client.get("/metrics").text
        assert sample(metrics, "mae_degraded_images_total") == 3 and sample(metrics, "mae_admitted_images") == 0
    assert [visible for _, visible, _ in engine.batches][:5] == [4, 4, 2, 2, 2]


def test_a_region_is_what_transformers_makes_of_the_same_patches(tmp_path: Path) -> None:
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 60}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
    region, count = [1, 2, 5, 6, 9], 16
    config = ViTMAEConfig(**sizes, image_size=32, patch_size=8, mask_ratio=1 - len(region) / count)
    model = ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    standardised = torch.from_numpy(((PICTURES[0] / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    noise = torch.ones(1, count).index_fill(1, torch.tensor(region), 0) + torch.arange(count) / 100
    with torch.no_grad():
        seen = model.vit(pixel_values=standardised, noise=noise).last_hidden_state[0]  # cls, then the least noise first

    settings = Settings(weights=str(tmp_path), backend="torch", precision="fp32", engine_cache=tmp_path / "cache")
    white = np.zeros((4, 4), np.uint8)
    white.flat[region] = 255
    with TestClient(create_app(settings)) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        patches = ",".join(map(str, region))
        tokens = post_region(client, PICTURES[0], f"pool=tokens&patches={patches}").json()["embeddings"][0]
        vectors = [
            post_region(client, PICTURES[0], f"pool=cls&patches={patches}"),
            post_region(client, PICTURES[0], "pool=cls", encoded(white.repeat(8, 0).repeat(8, 1))),
        ]
    np.testing.assert_allclose(tokens, seen[1:].numpy(), atol=1e-4)
    for vector in vectors:
        np.testing.assert_allclose(vector.json()["embeddings"][0], seen[0].numpy(), atol=1e-4)
