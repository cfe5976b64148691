"""`mae anomaly fit` and `mae anomaly test` on small weights, beside the route and scipy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from starlette.testclient import TestClient

from model.checkpoints.checkpoint import load
from model.checkpoints.heads_file import read_heads
from service.api.app import create_app
from service.settings import Settings
from tests.service.cli.conftest import Mae
from tests.support.engines import write_narrow

ENGINE = ("--backend", "torch", "--lanes", "1")
JSON = {"accept": "application/json"}


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Normal, good and bad images of 32 pixels beside `narrow.safetensors`; bad ones have a white patch, and a mask."""
    monkeypatch.chdir(tmp_path)
    write_narrow(tmp_path)
    rng = np.random.default_rng(0)
    for part, count in (("masks", 0), ("normal", 6), ("good", 3), ("bad", 3)):
        (tmp_path / "paper" / part).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(90, 110, (32, 32, 3), dtype=np.uint8)
            if part == "bad":
                row, column = 8 * rng.integers(0, 4, 2)
                mask = np.zeros((32, 32), np.uint8)
                mask[row : row + 8, column : column + 8] = 255
                image[mask > 0] = 255
                Image.fromarray(mask).save(f"paper/masks/{number}.png")
            Image.fromarray(image).save(f"paper/{part}/{number}.png")
    Path("paper/normal/torn.png").write_bytes(b"no image")
    return tmp_path / "paper"


def test_a_fit_is_served_and_tested(mae: Mae, paper: Path, tmp_path: Path) -> None:
    fitted = mae("anomaly", "fit", "paper/normal", "--weights", "narrow.safetensors", "-o", "out.safetensors", *ENGINE)
    assert fitted.code == 0, fitted.err
    assert fitted.out.startswith("out.safetensors: memory bank of 96 tokens, 0.0 MB, fitted on 6 images; threshold ")
    assert "paper/normal/torn.png" in fitted.err and "6 images are few" in fitted.err
    bank = read_heads(Path("out.safetensors")).memory_bank
    assert bank is not None and bank.tokens.shape == (96, 32) and len(bank.scores) == 6
    before, after = load(Path("narrow.safetensors")), load(Path("out.safetensors"))
    assert all((after.tensors[name] == tensor).all() for name, tensor in before.tensors.items())

    tested = mae("anomaly", "test", "paper", "--weights", "out.safetensors", "--json", "figures.json", *ENGINE)
    assert tested.code == 0, tested.err
    figures = json.loads(Path("figures.json").read_text())
    assert (figures["good"], figures["bad"], figures["image_auroc"]) == (3, 3, 1.0)
    assert figures["pixel_auroc"] > 0.9 and figures["flagged_bad"] == 3
    assert "96 tokens of 6 normal images" in tested.out and f"F1 {figures['f1']:.3f}" in " ".join(tested.out.split())

    app = create_app(Settings(weights="out.safetensors", backend="torch", engine_cache=tmp_path, lanes=1))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        assert client.get("/info").json()["engine"]["memory_bank"] == bank.info.model_dump()
        bad = Path("paper/bad/0.png").read_bytes()
        answer = client.post("/anomaly", content=bad, headers=JSON).json()
        tokens = np.array(client.post("/embed?pool=tokens", content=bad).json()["embeddings"][0])
    assert answer["threshold"] == figures["threshold"] and answer["anomalies"][0]["flagged"] is True
    np.testing.assert_allclose(answer["anomalies"][0]["patches"], cdist(tokens, bank.tokens).min(axis=1), rtol=1e-4)


def test_reconstruction_needs_no_fit(mae: Mae, paper: Path) -> None:
    options = ("--weights", "narrow.safetensors", "--seed", 3, "--passes", 4, "--json", "-", *ENGINE)
    first, again = (mae("anomaly", "test", "paper", *options) for _ in range(2))
    figures = json.loads(first.out)
    assert first.code == 0 and json.loads(again.out) == figures
    assert figures["threshold"] is figures["f1"] is None and figures["bad"] == 3
    assert 0 <= figures["image_auroc"] <= 1 and 0 <= figures["pixel_auroc"] <= 1


def test_options_of_a_fit(mae: Mae, paper: Path) -> None:
    options = ("--weights", "narrow.safetensors", *ENGINE)
    result = mae("anomaly", "fit", "paper", "-o", "a.safetensors", "--bank-tokens", 10, "--limit", 4, *options)
    assert "memory bank of 10 tokens, 0.0 MB, fitted on 4 images" in result.out, result.err
    for wrong, sentence in (
        (("-o", "a.npz"), "a.npz should end in .safetensors"),
        (("-o", "nowhere/a.safetensors"), "there is no folder nowhere"),
        (("-o", "a.safetensors", "--image-size", 64), "IMAGE_SIZE is set, but a fit is for the model's own"),
        (("-o", "a.safetensors", "--limit", 1), "limit: Input should be greater than or equal to 2"),
        (("-o", "narrow.safetensors/a.safetensors"), "there is no folder narrow.safetensors"),
    ):
        refused = mae("anomaly", "fit", "paper", *wrong, *options)
        assert refused.code == 2 and sentence in refused.err
    Path("one").mkdir()
    Path("one/a.png").write_bytes(Path("paper/good/0.png").read_bytes())
    refused = mae("anomaly", "fit", "one", "-o", "b.safetensors", *options)
    assert refused.code == 2 and "one: a fit needs two images or more, and there is 1" in refused.err
    assert not Path("b.safetensors").exists()


def test_what_a_test_refuses(mae: Mae, paper: Path) -> None:
    options = ("--weights", "narrow.safetensors", *ENGINE)
    for arguments, sentence in (
        (("paper/good",), "paper/good/good"),
        (("paper", "--method", "features"), "holds no memory bank"),
        (("paper", "--false-alarms", 0.1), "raw scores without a threshold"),
    ):
        refused = mae("anomaly", "test", *arguments, *options)
        assert refused.code == 2 and sentence in refused.err, refused.err
    (paper / "masks/1.png").unlink()
    refused = mae("anomaly", "test", "paper", *options)
    assert refused.code == 2 and "paper/bad/1.png has no mask of the same name in paper/masks" in refused.err
    Image.new("L", (16, 16)).save(paper / "masks/1.png")
    refused = mae("anomaly", "test", "paper", *options)
    assert refused.code == 2 and "the mask is 16 x 16 pixels" in refused.err
