"""POST /classify on the whole app, with an engine whose vectors are known by hand."""

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy.special import softmax

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig, Pooled
from service.api.app import create_app
from service.settings import Settings
from tests.service.api.routes.conftest import Start
from tests.support.engines import FakeEngine

CLASSES = ("night", "dusk", "day", "glare")


class Lamp(FakeEngine):
    """The mean vector is the image's grey over 100, the cls vector is zero."""

    def __init__(self, pool: Pooled | None = "mean", **behaviour: Any) -> None:
        super().__init__(**behaviour)
        self.heads = Heads()
        if pool is not None:
            weight = np.zeros((4, 8), np.float32)
            weight[:, 2] = [-3, -1, 1, 1]
            head = Head(HeadConfig(pool=pool, classes=CLASSES), weight, np.array([1, 0.5, -1, -1], np.float32))
            self.heads = Heads(head)
            self.info = self.info.model_copy(update={"head": head.config})

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        vectors = super().embed(lane, patches, visible_indices) / 100
        vectors[:, 0] = 0
        return vectors


def expected(grey: float) -> np.ndarray:
    """Softmax of the head's logits, by scipy in float64."""
    return softmax(grey / 100 * np.array([-3.0, -1, 1, 1]) + np.array([1, 0.5, -1, -1]))


def picture(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (32, 32), grey).save(out, "PNG")
    return out.getvalue()


def probabilities(answer: dict[str, Any]) -> dict[str, float]:
    return {one_class["label"]: one_class["probability"] for one_class in answer["classes"]}


def test_classes_by_their_probability(start: Start) -> None:
    client = start(Lamp())
    for grey, order in ((0, ["night", "dusk", "day", "glare"]), (250, ["day", "glare", "dusk", "night"])):
        answer = client.post("/classify", content=picture(grey))
        assert answer.status_code == 200 and answer.headers["x-mae-model"] == answer.json()["model"]
        assert answer.json()["model"] == "fake@000000000000" and answer.json()["count"] == 1
        [image] = answer.json()["classifications"]
        assert list(probabilities(image)) == order
        assert probabilities(image) == pytest.approx(dict(zip(CLASSES, expected(grey), strict=True)), rel=1e-5)


def test_the_head_gets_the_pooled_vector_that_it_was_trained_on(start: Start) -> None:
    [image] = start(Lamp("cls")).post("/classify", content=picture(250)).json()["classifications"]
    assert probabilities(image) == pytest.approx(dict(zip(CLASSES, expected(0), strict=True)), rel=1e-5)


def test_every_body_that_embed_takes(start: Start) -> None:
    client = start(Lamp())
    alone = client.post("/classify", content=picture(9)).json()["classifications"]
    files = [("image", ("a", picture(9))), ("image", ("b", picture(240)))]
    several = client.post("/classify", files=files).json()
    coded = [base64.b64encode(picture(grey)).decode() for grey in (9, 240)]
    assert client.post("/classify", json={"images": coded}).json() == several
    assert several["count"] == 2 and several["classifications"][0] == alone[0]
    assert [image["classes"][0]["label"] for image in several["classifications"]] == ["night", "day"]


@pytest.mark.parametrize(("top_k", "count"), [("1", 1), ("3", 3), ("4", 4), ("1000", 4)])
def test_top_k(start: Start, top_k: str, count: int) -> None:
    [image] = start(Lamp()).post(f"/classify?top_k={top_k}", content=picture(250)).json()["classifications"]
    assert [one_class["label"] for one_class in image["classes"]] == ["day", "glare", "dusk", "night"][:count]


@pytest.mark.parametrize("query", ["top_k=0", "top_k=-1", "top_k=many", "top_k=1.5", "pool=cls"])
def test_what_is_no_parameter(start: Start, query: str) -> None:
    answer = start(Lamp()).post(f"/classify?{query}", content=picture(0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_parameter")
    assert answer.json()["error"]["details"] == {"parameter": query.split("=")[0]}


def test_a_model_without_a_head(start: Start) -> None:
    client = start(Lamp(None))
    answer = client.post("/classify", content=picture(0))
    assert answer.status_code == 404
    sentence = "fake has no classification head: mae finetune trains one"
    assert answer.json() == {"error": {"code": "no_head", "message": sentence, "details": {}}}
    assert client.post("/embed", content=picture(0)).status_code == 200
    assert client.get("/info").json()["engine"]["head"] is None


def test_info_names_the_classes(start: Start) -> None:
    assert start(Lamp()).get("/info").json()["engine"]["head"] == {"pool": "mean", "classes": list(CLASSES)}


def test_refusals(start: Start) -> None:
    client = start(Lamp(), api_keys="right", max_body_mb=1, max_inflight_mb=1, max_images=2)
    key = {"x-api-key": "right"}

    def refused(status: int, code: str, headers: dict[str, str] = key, **body: Any) -> None:
        answer = client.post("/classify", headers=headers, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

    refused(401, "unauthorized", {}, content=picture(0))
    refused(400, "undecodable_image", content=b"no picture")
    refused(400, "no_images", json={"images": []})
    refused(406, "not_acceptable", key | {"accept": "application/x-npy"}, content=picture(0))
    refused(413, "body_too_large", content=b"0" * 1_000_001)
    refused(413, "too_many_images", files=[("image", ("a", picture(0)))] * 3)
    refused(415, "unsupported_media_type", key | {"content-type": "application/x-www-form-urlencoded"}, content=b"a=b")
    assert client.post("/classify", headers=key, content=picture(0)).status_code == 200


def test_it_is_counted_and_described_like_the_other_routes(start: Start) -> None:
    client = start(Lamp())
    answer = client.post("/classify", files=[("image", ("a", picture(0)))] * 3)
    assert "infer;dur=" in answer.headers["server-timing"]
    text = client.get("/metrics").text
    assert 'mae_requests_total{code="200",endpoint="/classify"} 1.0' in text
    assert 'mae_images_total{endpoint="/classify"} 3.0' in text
    described = client.get("/openapi.json").json()["paths"]["/classify"]["post"]
    assert set(described["requestBody"]["content"]) >= {"multipart/form-data", "application/json", "image/jpeg"}
    assert {"200", "401", "404", "413", "422", "429"} <= set(described["responses"])
    top_k, on_error = described["parameters"]
    assert (on_error["name"], on_error["schema"]["default"]) == ("on_error", "fail")
    assert (top_k["name"], top_k["schema"]["default"], top_k["schema"]["minimum"]) == ("top_k", 5, 1)


def test_it_shares_batches_with_embed(start: Start) -> None:
    gate, running = threading.Event(), threading.Event()

    def wait(images: list[int]) -> None:
        running.set()
        assert gate.wait(30)

    engine = Lamp(before=wait)
    client = start(engine)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, "/embed", content=picture(1))
        assert running.wait(30)
        waiting = [pool.submit(client.post, route, content=picture(2)) for route in ("/embed", "/classify")]
        while "mae_queue_images 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        gate.set()
        assert [request.result().status_code for request in (first, *waiting)] == [200, 200, 200]
    assert engine.batches == [("embed", 4, [1]), ("embed", 4, [2, 2])]


@pytest.mark.slow
def test_a_classifier_of_hugging_face_answers_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 60}
    names = dict(enumerate(CLASSES))
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, id2label=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "PNG")

    settings = Settings(weights=str(tmp_path), backend="torch", precision="fp32", engine_cache=tmp_path / "cache")
    with TestClient(create_app(settings)) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        answer = client.post("/classify?top_k=4", content=image.getvalue(), headers={"content-type": "image/png"})
        vector = client.post("/embed?pool=cls", content=image.getvalue(), headers={"content-type": "image/png"})
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    standardised = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.no_grad():
        logits = model(pixel_values=standardised).logits[0].numpy()
        hidden = model.vit(pixel_values=standardised).last_hidden_state[0, 0].numpy()
    found = {entry["label"]: entry["probability"] for entry in answer.json()["classifications"][0]["classes"]}
    np.testing.assert_allclose([found[name] for name in CLASSES], softmax(logits), atol=1e-4)
    np.testing.assert_allclose(vector.json()["embeddings"][0], hidden, atol=1e-4)
