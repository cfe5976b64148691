"""POST /explain on the whole app, with an engine whose vectors add up from the patches that it sees."""

import base64
import io
import statistics
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy.special import expit

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Head, Heads, Whitening
from model.checkpoints.native import HeadConfig
from service.inference.explanation import draw_subsets
from tests.service.api.routes.conftest import Start
from tests.support.engines import NARROW, FakeEngine
from tests.support.images import encoded

N, SEED, PASSES = 16, 4, 60
WEIGHTS = np.array([0, 0, 0, 0, 0, 3, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0], np.float32)
"""What each of the 4 x 4 patches of 8 x 8 pixels adds: patch 5 speaks for the class, patch 10 against it."""
JSON = {"accept": "application/json"}


class Sum(FakeEngine):
    """The mean vector is [sum of the visible patches' weights, grey of the first visible patch, 1, 0, …]."""

    def __init__(self, heads: Heads | None = None, **behaviour: Any) -> None:
        super().__init__(config=NARROW, **behaviour)
        self.heads = heads = heads or Heads()
        self.info = self.info.model_copy(update={"head": heads.head and heads.head.config})

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        super().embed(lane, patches, visible_indices)
        vectors = np.zeros((len(patches), 2, 32), np.float32)
        vectors[:, 1, 0] = WEIGHTS[visible_indices].sum(axis=1)
        vectors[:, 1, 1] = patches[:, 0, 0]
        vectors[:, 1, 2] = 1
        return vectors


def head() -> Heads:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 0] = 1
    return Heads(Head(HeadConfig(pool="mean", classes=("no", "y漢")), weight, np.array([0, -1], np.float32)))


def whitening() -> Heads:
    generator = np.random.default_rng(0)
    centre, matrix = generator.normal(size=32), generator.normal(size=(32, 5))
    return Heads(None, {"mean": Whitening(centre.astype(np.float32), matrix.astype(np.float32))})


def grey(value: int) -> bytes:
    return encoded(Image.new("L", (32, 32), value))


def post(client: TestClient, query: str, *images: bytes, **options: Any) -> Any:
    return client.post(f"/explain?{query}", files=[("image", ("i", image)) for image in images], **options)


def shares(scores: list[float]) -> list[float]:
    """Differences of means over the passes, patch by patch."""
    subsets = [set(subset.tolist()) for subset in draw_subsets(4, PASSES, SEED)]
    answer = []
    for patch in range(N):
        seen = [score for score, subset in zip(scores, subsets, strict=True) if patch in subset]
        left_out = [score for score, subset in zip(scores, subsets, strict=True) if patch not in subset]
        answer.append(statistics.fmean(seen) - statistics.fmean(left_out))
    return answer


def test_the_class_is_explained_by_the_patches_that_speak_for_it(start: Start) -> None:
    engine = Sum(head(), preferred_batch=8)
    answer = post(start(engine), f"seed={SEED}&passes={PASSES}", grey(9), headers=JSON)
    content = answer.json()
    assert answer.status_code == 200, content
    assert (content["target"], content["label"]) == ("class", "no"), "the sum of all is 1, less 1 of bias: a tie"
    sums = [sum(float(WEIGHTS[patch]) for patch in subset) for subset in draw_subsets(4, PASSES, SEED)]
    assert content["score"] == pytest.approx(0.5) and "whitened" not in content
    np.testing.assert_allclose(content["patches"], shares([float(1 - expit(value - 1)) for value in sums]), atol=1e-6)
    assert (content["grid"], content["passes"], content["seed"]) == ([4, 4], PASSES, SEED)
    assert content["scale"] == pytest.approx(max(map(abs, content["patches"])))
    order = np.argsort(content["patches"])
    assert (order[0], order[-1]) == (5, 10), "patch 5 speaks against `no`, and patch 10 for it"
    encoded_images = sum(len(images) for _, _, images in engine.batches)
    assert encoded_images == PASSES + 1 and max(len(images) for _, _, images in engine.batches) == 8


def test_a_label_chooses_the_class(start: Start) -> None:
    client = start(Sum(head()))
    no, yes = (post(client, f"seed={SEED}&label={label}", grey(9), headers=JSON).json() for label in ("no", "y漢"))
    assert (no["label"], yes["label"]) == ("no", "y漢")
    np.testing.assert_allclose(no["patches"], -np.array(yes["patches"]), atol=1e-6)


@pytest.mark.parametrize("heads", [Heads(), whitening()], ids=["plain", "whitened"])
def test_similarity_is_the_cosine_with_the_whole_second_image(start: Start, heads: Heads) -> None:
    content = post(start(Sum(heads)), f"seed={SEED}&passes={PASSES}", grey(9), grey(40), headers=JSON).json()
    assert content["target"] == "similarity" and "label" not in content

    def cosine(total: float) -> float:
        pair = np.zeros((2, 32))
        pair[:, :3] = (total, 9, 1), (WEIGHTS.sum(), 40, 1)
        if heads.whitening:
            pair = (pair - heads.whitening["mean"].centre) @ heads.whitening["mean"].matrix
        return float(pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1]))

    assert content["whitened"] == bool(heads.whitening)
    assert content["score"] == pytest.approx(cosine(1), abs=1e-5)
    scores = [cosine(sum(float(WEIGHTS[p]) for p in subset)) for subset in draw_subsets(4, PASSES, SEED)]
    np.testing.assert_allclose(content["patches"], shares(scores), atol=1e-5)


def test_by_default_a_picture_with_its_figures_in_headers(start: Start) -> None:
    client = start(Sum(head()))
    for view in ("overlay", "heatmap"):
        answer = post(client, f"seed={SEED}&view={view}&label=y漢", grey(9))
        content = post(client, f"seed={SEED}&view={view}&label=y漢", grey(9), headers=JSON).json()
        assert answer.headers["content-type"] == "image/png" and base64.b64decode(content["png"]) == answer.content
        assert float(answer.headers["x-mae-score"]) == pytest.approx(content["score"])
        assert float(answer.headers["x-mae-scale"]) == pytest.approx(content["scale"], rel=1e-5)
        assert answer.headers["x-mae-seed"] == str(SEED) and answer.headers["x-mae-label"] == "y%E6%BC%A2"
        with Image.open(io.BytesIO(answer.content)) as png:
            pixels = np.asarray(png).astype(int)
        red, blue = pixels[12, 12], pixels[20, 20]
        assert pixels.shape == (32, 32, 3) and red[0] > red[2] + 50 and blue[2] > blue[0] + 20


def test_a_seed_that_is_answered_repeats_the_answer(start: Start) -> None:
    client = start(Sum(head()))
    first = post(client, "passes=8", grey(9), headers=JSON).json()
    assert post(client, f"passes=8&seed={first['seed']}", grey(9), headers=JSON).json() == first


@pytest.mark.parametrize(
    ("query", "images", "parameter", "words"),
    [
        ("", 2, "target", "target=class takes 1 image: this request has 2"),
        ("target=similarity", 1, "target", "target=similarity takes 2 images, the second being"),
        ("target=similarity", 3, "target", "this request has 3"),
        ("label=maybe", 1, "label", "no class 'maybe'"),
        ("target=similarity&label=no", 2, "label", "only target=class has a label"),
        ("passes=1", 1, "passes", "greater than or equal to 2"),
        ("passes=257", 1, "passes", "less than or equal to 256"),
        ("target=patch", 1, "target", "'class' or 'similarity'"),
        ("on_error=skip", 1, "on_error", "unknown"),
    ],
)
def test_what_cannot_be_explained(start: Start, query: str, images: int, parameter: str, words: str) -> None:
    answer = post(start(Sum(head())), query, *[grey(1)] * images)
    error = answer.json()["error"]
    assert (answer.status_code, error["details"]) == (422, {"parameter": parameter}) and words in error["message"]


def test_without_a_head_similarity_is_the_default_and_a_class_is_missing(start: Start) -> None:
    client = start(Sum())
    assert post(client, "", grey(1), grey(2)).status_code == 200
    answer = post(client, "target=class", grey(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_head")


def test_passes_and_images_are_weighed_in_the_queue(start: Start) -> None:
    client = start(Sum(head()), queue_images=20)
    assert post(client, "passes=19", grey(1)).status_code == 200
    full, never = post(client, "passes=20", grey(1)), post(client, "passes=21", grey(1))
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert (never.status_code, never.json()["error"]["code"]) == (413, "too_many_images")
    assert "mae_admitted_images 0.0" in client.get("/metrics").text
    assert 'mae_images_total{endpoint="/explain"} 1.0' in client.get("/metrics").text


def test_an_image_that_fails_is_named(start: Start) -> None:
    client = start(Sum(head()))
    for images, number in (((b"words",), 0), ((grey(1), b"words"), 1)):
        answer = post(client, "target=similarity" if number else "", *images)
        assert (answer.status_code, answer.json()["error"]["details"]) == (400, {"image": number})
    assert "mae_admitted_images 0.0" in client.get("/metrics").text
