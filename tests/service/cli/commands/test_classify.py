"""`mae classify`, beside POST /classify."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from model.checkpoints.checkpoint import Checkpoint, save
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from service.api.app import create_app
from service.settings import Settings
from tests.service.cli.conftest import Mae

CLASSES = ("ant", "bear", "owl\tsnowy", "yak")
ENGINE = ("--weights", "head.safetensors", "--backend", "torch", "--lanes", "1")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, a broken one and a text in the folder `zoo`, beside `head.safetensors`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = MAEConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_depth=0, name="zoo")
    rng = np.random.default_rng(0)
    head = Head(HeadConfig(pool="mean", classes=CLASSES), *(rng.normal(size=n).astype("f4") for n in ((4, 16), 4)))
    tensors = dict(MaskedAutoencoder(config).state_dict())
    save(Path("head.safetensors"), Checkpoint(config, Preprocessing(), "mae-serve", tensors, heads=Heads(head)))
    Path("zoo").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"zoo/{number}.png")
    Path("zoo/torn.png").write_bytes(b"no image")
    Path("zoo/notes.txt").touch()
    return Path("zoo")


def test_the_classes_are_those_of_the_route(mae: Mae, zoo: Path, tmp_path: Path) -> None:
    result = mae("classify", zoo, "--top-k", 2, "--json", *ENGINE)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["path"] for line in lines] == ["zoo/0.png", "zoo/1.png", "zoo/2.png"]
    app = create_app(Settings(weights="head.safetensors", backend="torch", engine_cache=tmp_path, lanes=1))
    files = [("image", Path(line["path"]).read_bytes()) for line in lines]
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        answer = client.post("/classify?top_k=2", files=files).json()
    assert [line["classes"] for line in lines] == [image["classes"] for image in answer["classifications"]]
    assert result.code == 1 and "zoo/torn.png" in result.err and "3 classified, 1 skipped" in result.err
    assert "left out: 1 file of formats that are not read (1 .txt)" in result.err


def test_a_table_has_a_line_for_each_image(mae: Mae, zoo: Path) -> None:
    result = mae("classify", zoo / "0.png", zoo / "1.png", *ENGINE)
    rows = [line.split("\t") for line in result.out.replace("owl\tsnowy", "owl snowy").splitlines()]
    assert result.code == 0 and [row[0] for row in rows] == ["zoo/0.png", "zoo/1.png"]
    for row in rows:
        assert sorted(row[1::2]) == ["ant", "bear", "owl snowy", "yak"]
        probabilities = [float(text) for text in row[2::2]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-3)


def test_weights_without_a_head_are_refused(mae: Mae, squares: Path) -> None:
    result = mae("classify", squares)
    assert (result.code, result.out) == (2, "")
    assert "has no classification head: mae finetune trains one" in result.err


def test_a_folder_without_images(mae: Mae, zoo: Path) -> None:
    Path("phone").mkdir()
    Path("phone/a.cr3").touch()
    result = mae("classify", "phone", *ENGINE)
    assert result.code == 2 and "there are no images in phone; left out: 1 file" in result.err
