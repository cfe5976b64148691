"""A convolutional model through HTTP and the commands."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.config import MAEConfig, Preprocessing
from model.engines.build import build
from model.engines.settings import EngineSettings
from model.nn import build_model
from tests.live.conftest import Start
from tests.service.cli.conftest import run
from tests.support.conversion import conversions_in_process
from tests.support.engines import write_resnet
from tests.support.images import encoded

SMALL = MAEConfig(
    name="pebble",
    family="resnet",
    image_size=64,
    patch_size=16,
    embed_dim=24,
    depth=4,
    stages=((8, 1), (16, 2), (24, 1)),
    decoder_embed_dim=32,
    decoder_depth=1,
)
"""Sixteen patches of 16 x 16."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pebble") / "pebble.safetensors"
    save(path, Checkpoint(SMALL, Preprocessing(), "mae-serve", dict(build_model(SMALL).state_dict())))
    return path


@pytest.fixture(scope="module")
def resnet(start_server: Start, engine_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A fresh resnet_tiny: 49 patches of 32 x 32."""
    weights = write_resnet(tmp_path_factory.mktemp("resnet"))
    with conversions_in_process():
        build(EngineSettings(engine_cache=engine_cache, weights=str(weights), backend="openvino", precision="fp32"))
    with httpx.Client(base_url=start_server(weights=weights, max_batch=4).url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def photograph(photographs: Mapping[str, Image.Image]) -> bytes:
    return encoded(photographs["coffee"].crop((100, 0, 492, 392)))


def test_info_says_the_family(resnet: httpx.Client) -> None:
    config = resnet.get("/info").json()["engine"]["config"]
    assert (config["family"], config["stages"]) == ("resnet", [[32, 1], [64, 2], [128, 2], [320, 2]])


def test_vectors_are_the_mean_of_the_tokens(resnet: httpx.Client, photograph: bytes) -> None:
    mean = resnet.post("/embed", content=photograph).json()
    tokens = resnet.post("/embed?pool=tokens", content=photograph).json()
    assert (mean["dim"], tokens["grid"], np.shape(tokens["embeddings"])) == (320, [7, 7], (1, 49, 320))
    np.testing.assert_allclose(np.mean(tokens["embeddings"], axis=1), mean["embeddings"], atol=1e-5)


def test_there_is_no_cls_token(resnet: httpx.Client, photograph: bytes) -> None:
    answer = resnet.post("/embed?pool=cls", content=photograph)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["details"]) == (422, "invalid_parameter", {"parameter": "pool"})
    assert "no cls token" in error["message"]


@pytest.mark.parametrize("query", ["strategy=random", "strategy=block", "strategy=grid", "patches=3,7", "mask"])
def test_reconstructions_under_every_mask(resnet: httpx.Client, photograph: bytes, query: str) -> None:
    white = np.zeros((7, 7), dtype=np.uint8)
    white.flat[[3, 7]] = 255
    drawn = encoded(white.repeat(56, axis=0).repeat(56, axis=1))
    files = {"image": photograph} | ({"mask": drawn} if query == "mask" else {})
    url = "/reconstruct" if query == "mask" else f"/reconstruct?{query}"
    assert resnet.post(url, files=files).headers["content-type"] == "image/png"
    answer = resnet.post(url, files=files, headers={"accept": "application/json"}).json()
    removed = np.flatnonzero(answer["mask"])
    assert len(removed) == 37 if "strategy" in query else removed.tolist() == [3, 7]
    [one] = answer["reconstructions"]
    assert Image.open(io.BytesIO(base64.b64decode(one["png"]))).size == (224, 224)
    assert one["loss"] == pytest.approx(np.array(one["error"])[removed].mean(), rel=1e-5)


def test_mae_embed_says_at_once_that_there_is_no_cls_token(
    weights: Path, photograph: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coffee.png").write_bytes(photograph)
    command = ("embed", tmp_path / "coffee.png", "-o", tmp_path / "out.npz", "--pool", "cls")
    code, _, err = run(capfd, *command, "--weights", weights, "--backend", "torch")
    assert (code, err) == (2, "mae: pool: pebble is convolutional and has no cls token: take mean or tokens\n")


def test_mae_convert_describes_it(weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capfd, "convert", weights, "-o", tmp_path / "half.safetensors", "--half")
    assert code == 0
    assert "residual encoder of 1 blocks 8 wide, 2 blocks 16 wide, 1 blocks 24 wide, decoder of 1 blocks" in said
    assert "heads" not in said and "positions" not in said
    assert load(tmp_path / "half.safetensors").config == SMALL
