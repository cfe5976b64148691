"""Answers again, through the whole app: what is computed once and what anew, and that the answers are the same."""

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.engines.base import ServedModel
from service.api.app import create_app
from service.settings import Settings
from tests.support.engines import FakeEngine

JSON = {"accept": "application/json"}


def picture(value: int, size: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def mask(removed: int) -> bytes:
    """White over one of the four patches."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[16 * (removed // 2) :, 16 * (removed % 2) :][:16, :16] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Cached:
    """A service with a cache, and what its engine was asked for."""

    def __init__(self, client: TestClient, engine: FakeEngine) -> None:
        self.client = client
        self.engine = engine

    def post(self, path: str, *values: int, **options: Any) -> Any:
        """The answer to images in these shades of grey, which must have status 200."""
        files = [("image", picture(value)) for value in values] + options.pop("files", [])
        answer = self.client.post(path, files=files, **options)
        assert answer.status_code == 200, answer.text
        return answer

    def computed(self) -> list[int]:
        """The shades of grey that the engine has computed since the last call."""
        values = [value for _, _, batch in self.engine.batches for value in batch]
        self.engine.batches.clear()
        return values

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0] == name)


@contextmanager
def serve(cache_mb: float = 1, **settings: Any) -> Iterator[Cached]:
    engine = FakeEngine(not_a_number=66)
    head = HeadConfig(pool="mean", classes=("night", "day"))
    heads = Heads(Head(head, np.ones((2, 8), np.float32), np.zeros(2, np.float32)))
    engine.info = engine.info.model_copy(update={"head": head})
    app = create_app(Settings(cache_mb=cache_mb, **settings), lambda settings, progress: ServedModel(engine, heads))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield Cached(client, engine)


@pytest.fixture
def cached() -> Iterator[Cached]:
    with serve() as service:
        yield service


def test_the_second_answer_is_the_first_and_nothing_is_computed(cached: Cached) -> None:
    for path in ("/embed", "/embed?pool=tokens", "/classify", "/reconstruct?seed=3&view=panel"):
        cached.computed()
        first = cached.post(path, 5)
        computed = cached.computed()
        second = cached.post(path, 5)
        assert second.content == first.content
        assert {**second.headers, "x-request-id": "", "server-timing": ""} == {
            **first.headers,
            "x-request-id": "",
            "server-timing": "",
        }
        assert cached.computed() == [] and computed in ([5], [])
        assert "infer" not in second.headers["server-timing"] and "decode" not in second.headers["server-timing"]


def test_what_follows_the_engine_shares_its_result(cached: Cached) -> None:
    cached.post("/embed", 5)
    assert cached.computed() == [5]
    for path in ("/embed?pool=cls", "/embed?normalize=true", "/embed?encoding=base64", "/classify", "/invocations"):
        cached.post(path, 5)
    text = base64.b64encode(picture(5)).decode()
    openai = cached.client.post("/v1/embeddings", json={"input": [text], "model": "fake", "encoding_format": "float"})
    assert openai.json()["data"][0]["embedding"] == cached.post("/embed", 5).json()["embeddings"][0]
    raw = {"inference-header-content-length": "0"}
    for model in ("embed", "classify"):
        path = f"/v2/models/{model}/infer"
        assert cached.client.post(path, content=picture(5), headers=raw).status_code == 200
    assert cached.computed() == []
    cached.post("/reconstruct?seed=1", 5)
    assert cached.computed() == [5]
    cached.post("/reconstruct?seed=1&view=error", 5)
    assert cached.computed() == []


@pytest.mark.parametrize(
    "path",
    [
        "/embed?pool=tokens",
        "/embed?keep=0.5&seed=1",
        "/embed?keep=0.5&seed=2",
        "/embed?keep=0.75&seed=1",
        "/embed?patches=1,2",
        "/embed?patches=1,3",
        "/reconstruct?seed=1",
        "/reconstruct?seed=2",
        "/reconstruct?seed=1&mask_ratio=0.5",
        "/reconstruct?seed=1&strategy=grid",
        "/reconstruct?seed=1&draws=3&view=spread",
        "/reconstruct?patches=1,2",
        "/reconstruct?patches=1,3",
    ],
)
def test_every_parameter_that_decides_a_result_is_in_the_key(cached: Cached, path: str) -> None:
    others = ["/embed", "/embed?keep=0.5&seed=3", "/reconstruct?seed=3", "/reconstruct?patches=1"]
    for other in [*others, "/embed?keep=0.25&seed=1"]:
        cached.post(other, 5)
    cached.computed()
    plain = cached.client.app.state.service.pipeline  # type: ignore[attr-defined]
    first = cached.post(path, 5)
    assert cached.computed() == [5] * (3 if "draws=3" in path else 1)
    assert cached.post(path, 5).content == first.content
    assert cached.computed() == []
    plain._cache = None  # computed anew, without the cache
    assert cached.post(path, 5).content == first.content


def test_a_mask_picture_is_in_the_key(cached: Cached) -> None:
    answers = {}
    for removed in (0, 3, 0, 3):
        answer = cached.post("/reconstruct", 5, files=[("mask", mask(removed))], headers=JSON).json()
        assert answer["mask"] == [int(index == removed) for index in range(4)]
        assert answers.setdefault(removed, answer) == answer
    assert cached.computed() == [5, 5]


def test_the_region_of_a_mask_picture_is_in_the_key_and_in_the_second_answer(cached: Cached) -> None:
    answers = {}
    for inside in (0, 3, 0, 3):
        answer = cached.post("/embed", 5, files=[("mask", mask(inside))]).json()
        assert answer["positions"] == [inside]
        assert answers.setdefault(inside, answer) == answer
    assert cached.computed() == [5, 5]


def test_fewer_patches_under_load_are_kept_as_what_they_are() -> None:
    """The queue is more than half full, so min_keep=0.5 encodes half of the patches."""
    with serve(queue_images=8) as cached:
        budget = cached.client.app.state.service.budgets.images  # type: ignore[attr-defined]
        held = budget.limit * 3 // 4
        budget.take(held)
        degraded = cached.post("/embed?min_keep=0.5&seed=3", 5, 6).json()
        budget.give(held)
        assert degraded["keep"] < 1
        assert cached.metric("mae_cache_misses_total") == 2  # one per image
        assert sorted(cached.computed()) == [5, 6]
        whole = cached.post("/embed?min_keep=0.5&seed=3", 5, 6).json()
        assert (whole["keep"], sorted(cached.computed())) == (1, [5, 6])
        same = cached.post(f"/embed?keep={degraded['keep']}&seed=3", 5, 6).json()
        assert (same["embeddings"], same["space"]) == (degraded["embeddings"], degraded["space"])
        assert cached.computed() == []
        budget.take(held)  # what is known whole stays whole, unless another image of the request is not known
        assert cached.post("/embed?min_keep=0.5&seed=3", 5, 6).json()["keep"] == 1
        assert cached.post("/embed?min_keep=0.5&seed=3", 5, 7).json()["keep"] == degraded["keep"]
        budget.give(held)


def test_what_a_drawn_seed_decides_is_neither_looked_up_nor_stored(cached: Cached) -> None:
    for path in ("/embed?keep=0.5", "/reconstruct"):
        for _ in range(3):
            cached.post(path, 5)
    assert cached.computed() == [5] * 6
    for name in ("mae_cache_hits_total", "mae_cache_misses_total", "mae_cache_bytes"):
        assert cached.metric(name) == 0


def test_the_images_of_a_request_are_looked_up_one_by_one(cached: Cached) -> None:
    cached.post("/embed", 7)
    cached.computed()
    answer = cached.post("/embed", 5, 7, 9).json()
    assert sorted(cached.computed()) == [5, 9]
    assert [vector[0] for vector in answer["embeddings"]] == [5, 7, 9]
    answer = cached.post("/reconstruct?patches=0", 5, 7, headers=JSON).json()
    cached.computed()
    again = cached.post("/reconstruct?patches=0", 9, 7, 5, headers=JSON).json()
    assert cached.computed() == [9]
    assert again["reconstructions"][1:] == answer["reconstructions"][::-1]
    assert cached.metric("mae_cache_hits_total") == 3
    assert cached.metric("mae_cache_misses_total") == 6


def test_a_failure_is_computed_again_and_the_others_are_kept(cached: Cached) -> None:
    """66 is the shade for which the fake engine answers no numbers."""
    files = [("image", picture(5)), ("image", b"no image"), ("image", picture(66))]
    for expected in ([5, 66], [66]):
        answer = cached.client.post("/embed?on_error=skip", files=files).json()
        assert [vector and vector[0] for vector in answer["embeddings"]] == [5, None, None]
        assert [(error["image"], error["code"]) for error in answer["errors"]] == [
            (1, "undecodable_image"),
            (2, "inference_failed"),
        ]
        assert set(cached.computed()) - {128} == set(expected)  # after a failure a grey image is run
    assert cached.client.post("/embed", files=files[2:]).status_code == 500


def test_results_are_kept_for_each_key_apart() -> None:
    with serve(api_keys=("one", "two")) as cached:
        for key, expected in (("one", [5]), ("two", [5]), ("one", []), ("two", [])):
            cached.post("/embed", 5, headers={"x-api-key": key})
            assert cached.computed() == expected
        assert cached.client.post("/embed", content=picture(5), headers={"x-api-key": "three"}).status_code == 401
        both = {"authorization": "Bearer wrong", "x-api-key": "two"}
        cached.post("/embed", 5, headers=both)
        assert cached.computed() == []


def test_limits_come_before_the_cache() -> None:
    with serve(queue_images=2, max_images=3) as cached:
        for value in (5, 6, 7, 8):
            cached.post("/embed", value)
        hits = cached.metric("mae_cache_hits_total")
        for values, limit in (((5, 6, 7), 2), ((5, 6, 7, 8), 3)):
            answer = cached.client.post("/embed", files=[("image", picture(value)) for value in values])
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")
            assert answer.json()["error"]["details"] == {"limit": limit}
        assert cached.metric("mae_cache_hits_total") == hits
        assert cached.client.app.state.service.budgets.images.used == 0  # type: ignore[attr-defined]


def test_passes_count_against_the_limit_before_the_cache() -> None:
    with serve(queue_images=3) as cached:
        path = "/reconstruct?seed=1&draws=2"
        for value in (5, 6):
            cached.post(path, value)
        assert cached.computed() == [5, 5, 6, 6]
        cached.post(path, 6)
        assert cached.computed() == []
        answer = cached.client.post(path, files=[("image", picture(value)) for value in (5, 6)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")
        assert "2 images in 2 passes each" in answer.json()["error"]["message"]


def test_a_mask_is_the_same_drawn_or_listed(cached: Cached) -> None:
    drawn = cached.post("/reconstruct?seed=1", 5, headers={"accept": "application/json"}).json()
    assert cached.computed() == [5]
    removed = ",".join(str(index) for index, flag in enumerate(drawn["mask"]) if flag)
    listed = cached.post(f"/reconstruct?patches={removed}", 5, headers={"accept": "application/json"}).json()
    assert cached.computed() == []
    assert listed["reconstructions"] == drawn["reconstructions"] and listed["seed"] is None
    other = ",".join(str(index) for index, flag in enumerate(drawn["mask"]) if not flag)
    cached.post(f"/reconstruct?patches={other}", 5)
    assert cached.computed() == [5]


def test_bytes_are_bounded_and_counted() -> None:
    with serve(cache_mb=0.01) as cached:
        for value in range(50):
            cached.post("/embed", value)
            assert 0 < cached.metric("mae_cache_bytes") <= 10_000
        stored = 50 - cached.metric("mae_cache_evictions_total")
        assert 5 < stored < 20
        cached.computed()
        cached.post("/embed", 49)
        assert cached.computed() == []
        cached.post("/embed", 0)
        assert cached.computed() == [0]
        assert cached.client.get("/info").json()["limits"]["cache_mb"] == 0.01


def test_without_the_setting_everything_is_computed() -> None:
    with serve(cache_mb=0) as cached:
        cached.post("/embed", 5)
        cached.post("/embed", 5)
        assert cached.computed() == [5, 5]
        assert cached.metric("mae_cache_misses_total") == cached.metric("mae_cache_hits_total") == 0
