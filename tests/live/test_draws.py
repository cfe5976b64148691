"""Several draws in one request: against the requests for each seed, put together by Python's statistics."""

import base64
import io
import statistics
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live.conftest import LiveServer
from tests.support.images import encoded

SEED, DRAWS, RATIO = 11, 4, 0.5
PATCHES = (5, 77, 130, 195)
"""Patches that are compared pixel by pixel."""


def ask(server: LiveServer, photograph: bytes, **parameters: Any) -> dict[str, Any]:
    """The answer as JSON, with the picture of its only image as pixels."""
    parameters = {"mask_ratio": RATIO, "seed": SEED, "view": "reconstruction", **parameters}
    response = httpx.post(
        server.url + "/reconstruct", params=parameters, content=photograph, headers={"accept": "application/json"}
    )
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    [image] = content["reconstructions"]
    with Image.open(io.BytesIO(base64.b64decode(image.pop("png")))) as png:
        content["picture"] = np.asarray(png).astype(int)
    return {**content, **image, "loss_header": response.headers["x-mae-loss"]}


def patch(picture: np.ndarray, number: int) -> np.ndarray:
    row, column = divmod(number, 14)
    return picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1)


def test_draws_are_the_mean_and_the_spread_of_requests_by_seed(server: LiveServer, photographs: Any) -> None:
    photograph = encoded(photographs["coffee"], "JPEG")
    together = ask(server, photograph, draws=DRAWS)
    alone = [ask(server, photograph, seed=SEED + draw) for draw in range(DRAWS)]
    assert together["seeds"] == [SEED + draw for draw in range(DRAWS)] and together["seed"] == SEED
    assert together["mask"] == alone[0]["mask"] and "seeds" not in alone[0] and "spread" not in alone[0]
    removed_once = [sum(one["mask"][number] for one in alone) for number in range(196)]
    for number in range(196):
        counted = [one for one in alone if one["mask"][number]] or alone
        assert together["error"][number] == pytest.approx(statistics.fmean(one["error"][number] for one in counted))
        assert (together["spread"][number] is None) == (removed_once[number] < 2)
    assert {count < 2 for count in removed_once} == {True, False}, "the seed shows both cases"
    for number in PATCHES:
        drawn = np.array([patch(one["picture"], number) for one in alone if one["mask"][number]])
        if len(drawn) > 1:
            np.testing.assert_allclose(patch(together["picture"], number), drawn.mean(axis=0), atol=0.501)
            variances = [statistics.variance(values) for values in drawn.T.tolist()]
            assert together["spread"][number] == pytest.approx(statistics.fmean(variances) ** 0.5)
    removed = [error for error, gone in zip(together["error"], together["mask"], strict=True) if gone]
    assert float(together["loss_header"]) == pytest.approx(statistics.fmean(removed), abs=1e-6) == together["loss"]


def test_the_picture_of_the_spread_is_dark_where_draws_agree(server: LiveServer, photographs: Any) -> None:
    spread = ask(server, encoded(photographs["coffee"], "JPEG"), draws=8, mask_ratio=0.75, view="spread")
    by_patch = [patch(spread["picture"], number).mean() for number in range(196)]
    known = [number for number in range(196) if spread["spread"][number] is not None]
    order = sorted(known, key=lambda number: spread["spread"][number])
    assert statistics.fmean(by_patch[n] for n in order[:40]) < statistics.fmean(by_patch[n] for n in order[-40:]) / 2
    flat = ask(server, encoded(Image.new("RGB", (224, 224), "teal")), draws=8, mask_ratio=0.75)
    assert statistics.fmean(filter(None, flat["spread"])) < statistics.fmean(filter(None, spread["spread"])) / 2


def test_draws_are_refused_where_they_mean_nothing(server: LiveServer, photographs: Any) -> None:
    image = encoded(Image.new("RGB", (40, 40), "teal"))
    for query, parameter in (
        ("draws=0", "draws"),
        ("draws=65", "draws"),
        ("view=spread", "view"),
        ("draws=8&patches=1", "draws"),
    ):
        answer = httpx.post(f"{server.url}/reconstruct?{query}", content=image)
        assert (answer.status_code, answer.json()["error"]["details"]) == (422, {"parameter": parameter}), query
    many = [("image", ("i.png", image))] * 9
    answer = httpx.post(f"{server.url}/reconstruct?draws=64", files=many)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["details"]) == (413, "too_many_images", {"limit": 512})
    assert "9 images in 64 passes each" in error["message"]
