"""POST /anomaly on the whole app, with an engine whose tokens and predictions are known by hand."""

import io
import time
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_info

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads
from model.checkpoints.memory_bank import MemoryBank
from model.config import MAEConfig
from model.masking import complementary_visible
from tests.service.api.routes.conftest import Start
from tests.support.engines import SMALL, FakeEngine

JSON = {"accept": "application/json"}
NORMAL = np.array([[value] * 8 for value in (60, 70, 80)], np.float32)
"""Tokens of normal patches, which are grey."""


class Mosaic(FakeEngine):
    """A patch's token repeats its first byte, and the decoder predicts the mean grey of the visible patches."""

    def __init__(self, scores: list[float] | None = None, config: MAEConfig = SMALL, **behaviour: Any) -> None:
        """With a memory bank of NORMAL, if `scores` of normal images are given."""
        super().__init__(config=config, **behaviour)
        self.heads = Heads()
        if scores is not None:
            self.heads = Heads(memory_bank=MemoryBank(NORMAL, np.array(scores, np.float32), 32))

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        answer = super().tokens(lane, patches, visible_indices)
        return np.where(np.isnan(answer), answer, patches[:, :, :1].astype(np.float32))

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        _, error = super().reconstruct(lane, patches, visible_indices)
        greys = [image[visible].mean() for image, visible in zip(patches, visible_indices, strict=True)]
        return np.stack([np.full_like(image, grey) for image, grey in zip(patches, greys, strict=True)]), error


def picture(*greys: int) -> bytes:
    """Four patches of 16 x 16, each of one grey."""
    square = np.kron(np.array(greys, np.uint8).reshape(2, 2), np.ones((16, 16), np.uint8))
    out = io.BytesIO()
    Image.fromarray(square).save(out, "PNG")
    return out.getvalue()


def pixels(answer: httpx.Response) -> np.ndarray:
    assert answer.headers["content-type"] == "image/png", answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)


def post(client: TestClient, query: str, *images: bytes, **options: Any) -> httpx.Response:
    return client.post(f"/anomaly?{query}", files=[("i", image) for image in images], **options)


def score_by_hand(greys: list[int], seed: int, passes: int, ratio: float) -> np.ndarray:
    """The scores of plain patches: the error before the last filter, and then the filter, patch by patch."""
    visible = complementary_visible(2, ratio, passes, seed)
    std = np.array([0.229, 0.224, 0.225])
    errors = []
    for patch, grey in enumerate(greys):
        predicted = [int(np.mean([greys[other] for other in seen])) for seen in visible if patch not in seen]
        errors.append(np.mean(((np.mean(predicted) - grey) / 255 / std) ** 2) / 0.1)
    corners = np.pad(np.array(errors).reshape(2, 2), 1, mode="edge")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return np.array([(corners[r : r + 3, c : c + 3] * weights).sum() for r in range(2) for c in range(2)])


def test_features_are_distances_to_the_bank(start: Start) -> None:
    client = start(Mosaic(scores=list(range(1, 100))))
    images = [(60, 72, 80, 90), (70, 61, 79, 81)]
    answer = post(client, "false_alarms=0.9", *(picture(*greys) for greys in images), headers=JSON).json()
    assert (answer["method"], answer["count"], answer["grid"]) == ("features", 2, [2, 2])
    assert (answer["calibrated"], answer["false_alarms"], answer["threshold"]) == (True, 0.9, 10)
    assert (answer["mask_ratio"], answer["passes"], answer["seed"]) == (None, None, None)
    for greys, found in zip(images, answer["anomalies"], strict=True):
        wanted = cdist([[grey] * 8 for grey in greys], NORMAL).min(axis=1)
        np.testing.assert_allclose(found["patches"], wanted, rtol=1e-6)
        assert found["score"] == max(found["patches"])
    assert [found["flagged"] for found in answer["anomalies"]] == [True, False]  # 10 sqrt(8), and sqrt(8)


def test_distances_take_one_thread(start: Start) -> None:
    start(Mosaic(scores=[1, 2]))
    threads = [library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"]
    assert threads and set(threads) == {1}


def test_false_alarms_move_the_threshold(start: Start) -> None:
    client = start(Mosaic(scores=list(range(1, 100))))
    for share, threshold in ((0.5, 50), (0.05, 95), (0.01, 99)):
        answer = post(client, f"false_alarms={share}", picture(60, 60, 60, 95), headers=JSON).json()
        assert answer["threshold"] == threshold
        assert answer["anomalies"][0]["flagged"] == (threshold < 15 * 8**0.5)
    assert post(client, "", picture(60, 60, 60, 95), headers=JSON).json()["threshold"] == 99


@pytest.mark.parametrize(("passes", "ratio"), [(2, 0.5), (8, 0.5), (4, 0.25), (5, 0.75)])
def test_reconstruction_predicts_each_patch_from_the_others(start: Start, passes: int, ratio: float) -> None:
    engine = Mosaic()
    client, greys = start(engine), [60, 70, 80, 200]
    query = f"passes={passes}&mask_ratio={ratio}&seed=3"
    answer = post(client, query, picture(*greys), headers=JSON).json()
    assert (answer["method"], answer["seed"], answer["passes"]) == ("reconstruction", 3, passes)
    assert (answer["calibrated"], answer["threshold"], answer["false_alarms"]) == (False, None, None)
    assert answer["mask_ratio"] == ratio
    [found] = answer["anomalies"]
    assert found["flagged"] is None
    np.testing.assert_allclose(found["patches"], score_by_hand(greys, 3, passes, ratio), rtol=1e-5)
    assert sum(len(images) for operation, _, images in engine.batches if operation == "reconstruct") == passes


def test_passes_share_batches_and_count_as_images(start: Start) -> None:
    engine = Mosaic(before=lambda images: time.sleep(0.02))
    client = start(engine, queue_images=8)
    assert post(client, "passes=4&mask_ratio=0.5", picture(1, 2, 3, 4), picture(5, 6, 7, 8), headers=JSON).is_success
    assert max(len(images) for _, _, images in engine.batches) > 1
    answer = post(client, "passes=9&mask_ratio=0.5", picture(1, 2, 3, 4))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")
    assert "in 9 passes" in answer.json()["error"]["message"]


def test_the_least_passes_are_the_default(start: Start) -> None:
    client = start(Mosaic())
    for ratio, passes in ((0.75, 2), (0.5, 2), (0.25, 4)):
        answer = post(client, f"mask_ratio={ratio}", picture(1, 2, 3, 4), headers=JSON).json()
        assert answer["passes"] == passes
    assert post(client, "", picture(1, 2, 3, 4), headers=JSON).json()["mask_ratio"] == 0.75


def test_views(start: Start) -> None:
    client = start(Mosaic(scores=[5.0] * 100))
    strange = picture(60, 70, 80, 200)
    mask = pixels(post(client, "view=mask", strange))
    assert (mask[16:, 16:] == 255).all() and mask.sum() == 255 * 3 * 16 * 16
    heat = pixels(post(client, "view=heatmap", strange))
    assert heat[0, 0].tolist() == [0, 0, 4] and heat[-1, -1].tolist() == [252, 255, 164]
    overlay = post(client, "", strange)
    assert pixels(overlay)[0, 0].tolist() == [60, 60, 60]
    assert overlay.headers["x-mae-flagged"] == "true" and float(overlay.headers["x-mae-threshold"]) == 5
    assert float(overlay.headers["x-mae-score"]) == pytest.approx(120 * 8**0.5, rel=1e-5)
    assert "x-mae-seed" not in overlay.headers
    expected = post(client, "view=expected&mask_ratio=0.75&passes=8&seed=1", strange)
    visible = complementary_visible(2, 0.75, 8, 1)
    last = np.mean([[60, 70, 80, 200][seen[0]] for seen in visible if 3 not in seen])
    assert abs(pixels(expected)[-1, -1, 0] - last) <= 1
    assert expected.headers["x-mae-seed"] == "1" and expected.headers["x-mae-score"] == overlay.headers["x-mae-score"]


def test_several_images_are_json_and_skipped_ones_are_null(start: Start) -> None:
    client = start(Mosaic(scores=[1.0, 2.0], not_a_number=201))
    images = [picture(60, 60, 60, 60), b"no image", picture(201, 1, 1, 1), picture(90, 60, 60, 60)]
    answer = post(client, "on_error=skip", *images).json()
    assert answer["count"] == 4
    assert [found and found["score"] for found in answer["anomalies"]] == [0, None, None, pytest.approx(10 * 8**0.5)]
    assert [(e["image"], e["code"]) for e in answer["errors"]] == [(1, "undecodable_image"), (2, "inference_failed")]
    raw = post(client, "on_error=skip&method=reconstruction", *images).json()
    assert [e["image"] for e in raw["errors"]] == [1, 2] and raw["anomalies"][1:3] == [None, None]
    assert post(client, "", *images[::3]).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("scores", "query", "parameter", "sentence"),
    [
        (None, "method=features", "method", "mae anomaly fit"),
        (None, "false_alarms=0.1", "false_alarms", "raw scores without a threshold"),
        (None, "view=mask", "view", "raw scores without a threshold"),
        ([1, 2], "method=reconstruction&false_alarms=0.1", "false_alarms", "raw scores"),
        ([1, 2], "passes=8", "passes", "only for method=reconstruction and view=expected"),
        ([1, 2], "seed=8", "seed", "only for method=reconstruction"),
        ([1, 2], "method=features&mask_ratio=0.5", "mask_ratio", "only for method=reconstruction"),
        ([1, 2], "false_alarms=0", "false_alarms", "greater than 0"),
        ([1, 2], "false_alarms=1", "false_alarms", "less than 1"),
        (None, "passes=65", "passes", "less than or equal to 64"),
        (None, "passes=1", "passes", "needs 2 passes"),
        (None, "mask_ratio=0.25&passes=3", "passes", "needs 4 passes"),
        (None, "mask_ratio=0", "mask_ratio", "there is nothing to reconstruct"),
        (None, "mask_ratio=1", "mask_ratio", "nothing is left"),
        (None, "method=magic", "method", "features"),
    ],
)
def test_refusals(start: Start, scores: list[float] | None, query: str, parameter: str, sentence: str) -> None:
    answer = post(start(Mosaic(scores)), query, picture(1, 2, 3, 4))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["details"]["parameter"] == parameter and sentence in error["message"]


def test_a_bank_of_another_image_size_is_refused(start: Start) -> None:
    engine = Mosaic([1, 2], config=SMALL.model_copy(update={"image_size": 48}))
    answer = post(start(engine), "", picture(1, 2, 3, 4))
    assert answer.status_code == 422 and "IMAGE_SIZE is 48" in answer.json()["error"]["message"]


def test_without_a_decoder_features_alone_are_left(start: Start) -> None:
    config = SMALL.model_copy(update={"decoder_depth": 0})
    for query in ("method=reconstruction", "view=expected"):
        answer = post(start(Mosaic([1, 2], config=config)), query, picture(1, 2, 3, 4))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_decoder")
    assert post(start(Mosaic([1, 2], config=config)), "", picture(1, 2, 3, 4)).is_success
    assert post(start(Mosaic(config=config)), "", picture(1, 2, 3, 4)).status_code == 404
