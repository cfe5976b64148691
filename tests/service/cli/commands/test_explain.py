"""`mae explain`, beside POST /explain."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from tests.service.cli.conftest import Mae, fill_zoo

ENGINE = ("--weights", "head.safetensors", "--backend", "torch", "--lanes", "1")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images and a broken one in the folder `zoo`, beside `head.safetensors`."""
    monkeypatch.chdir(tmp_path)
    return fill_zoo(("ant", "bear"), 2)


def test_pictures_and_figures_are_those_of_the_route(mae: Mae, zoo: Path, tmp_path: Path) -> None:
    app = create_app(Settings(weights="head.safetensors", backend="torch", engine_cache=tmp_path, lanes=1))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        for names, query in ((["0"], {"label": "bear", "view": "heatmap"}), (["0", "1"], {"target": "similarity"})):
            files = [("image", (zoo / f"{name}.png").read_bytes()) for name in names]
            parameters = {**query, "seed": "7", "passes": "24"}
            answer = client.post("/explain", params=parameters, files=files)
            content = client.post(
                "/explain", params=parameters, files=files, headers={"accept": "application/json"}
            ).json()
            flags = [text for name, value in parameters.items() for text in (f"--{name}", value)]
            paths = [zoo / f"{name}.png" for name in names]
            result = mae("explain", *paths, "-o", "out.png", "--json", *flags, *ENGINE)
            assert result.code == 0 and Path("out.png").read_bytes() == answer.content
            assert json.loads(result.out) == {key: value for key, value in content.items() if key != "png"}


def test_the_score_is_told(mae: Mae, zoo: Path) -> None:
    result = mae("explain", zoo / "0.png", "-o", "out.png", "--seed", 3, "--passes", 8, *ENGINE)
    assert result.code == 0 and result.out == ""
    assert result.err.startswith("mae: seed 3, probability of '") and ", scale 0." in result.err
    similar = mae("explain", zoo / "0.png", zoo / "0.png", "-o", "out.png", "--target", "similarity", *ENGINE)
    assert ", cosine 1, scale " in similar.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["zoo/0.png", "zoo/1.png"], "target=class takes 1 image: this request has 2"),
        (["zoo/0.png", "--target", "similarity"], "target=similarity takes 2 images, the second being the one that"),
        (["zoo/0.png", "--label", "cat"], "label: the head has no class 'cat'"),
        (["zoo/0.png", "--passes", "1"], "passes: Input should be greater than or equal to 2"),
        (["zoo/torn.png"], "zoo/torn.png is no image that can be read"),
        (["zoo/0.png", "zoo/torn.png", "--target", "similarity"], "zoo/torn.png is no image that can be read"),
        (["zoo/2.png"], "zoo/2.png: No such file or directory"),
        (["zoo/0.png", "-o", "out.jpg"], "out.jpg: pictures are written as PNG"),
        (["zoo/0.png", "-o", "-", "--json"], "--json and the picture cannot both go to standard output"),
    ],
)
def test_what_cannot_be_is_one_sentence(mae: Mae, zoo: Path, arguments: list[str], sentence: str) -> None:
    result = mae("explain", "-o", "out.png", *arguments, *ENGINE)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith(f"mae: {sentence}") and result.err.count("\n") == 1
    assert not Path("out.png").exists()


def test_weights_without_a_head_explain_no_class(mae: Mae, squares: Path) -> None:
    result = mae("explain", squares / "0.png", "-o", "out.png", "--target", "class")
    assert result.code == 2 and "has no classification head: mae finetune trains one" in result.err
