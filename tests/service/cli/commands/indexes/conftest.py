"""A small model with a whitening, images of noise, and an index of them, for the commands of indexes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.arrays import Floats
from model.checkpoints.checkpoint import Checkpoint, save
from model.checkpoints.heads import Heads, Whitening
from model.config import MAEConfig, Preprocessing
from model.engines import build as building
from model.engines.base import ServedModel
from model.engines.settings import EngineSettings
from model.nn.vit import MaskedAutoencoder
from service.index.sheet import CAPTION, GAP
from service.index.thumbnails import SIDE
from tests.service.cli.conftest import Mae, run

WEIGHTS = ("--weights", "white.safetensors", "--backend", "torch")


@pytest.fixture(scope="module")
def built() -> dict[str, ServedModel]:
    """Engines by their settings: the models of all tests are the same."""
    return {}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, ServedModel]) -> Path:
    """A small model with a whitening in the current folder, and twelve images of noise in `zoo`, in two folders."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)
    real = building.build

    def build(spec: EngineSettings, *progress: Callable[[str], None]) -> ServedModel:
        if repr(spec) not in built:
            built[repr(spec)] = real(spec, *progress)
        return built[repr(spec)]

    monkeypatch.setattr(building, "build", build)
    torch.manual_seed(0)
    config = MAEConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_depth=0, name="zoo")
    rng = np.random.default_rng(0)
    whitening = Whitening(rng.normal(size=16).astype("f4"), rng.normal(size=(16, 15)).astype("f4"))
    tensors = dict(MaskedAutoencoder(config).state_dict())
    heads = Heads(whitening={"mean": whitening})
    save(Path("white.safetensors"), Checkpoint(config, Preprocessing(), "mae-serve", tensors, heads=heads))
    for number in range(12):
        folder = Path("zoo", "cats" if number < 6 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        make_image(folder / f"{number}.png", number)
    return Path("zoo")


def make_image(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def mae(zoo: Path, capfd: pytest.CaptureFixture[str]) -> Mae:
    """Runs a command with the small model."""

    def run_with_model(command: str, *arguments: object) -> Any:
        options = () if command in ("duplicates", "pack") or "--weights" in arguments else WEIGHTS
        return run(capfd, command, *arguments, *options)

    return run_with_model


def vectors_of(mae: Mae, *options: object) -> tuple[list[str], Floats]:
    """Paths and vectors of the images by `mae embed`."""
    assert mae("embed", "zoo", "-o", "all.npz", "--overwrite", *options).code == 0
    with np.load("all.npz") as arrays:
        return arrays["paths"].tolist(), arrays["vectors"]


def by_cosine(vectors: Floats, query: Floats) -> tuple[np.ndarray, Floats]:
    cosine = (vectors @ query) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosine)
    return order, cosine[order]


def pixels(path: str | Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def cell(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    """The square of a thumbnail on a sheet."""
    left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP)
    return np.asarray(sheet.crop((left, top, left + SIDE, top + SIDE)))


@pytest.fixture
def copies(mae: Mae, zoo: Path) -> Path:
    """Forty images of noise, an index of them, and smaller files of the same pictures as two of them."""
    for number in range(12, 40):
        make_image(zoo / f"{number}.png", number)
    for number in (1, 20):
        picture = pixels(next(zoo.rglob(f"{number}.png")))
        picture.save(zoo / f"copy of {number}.jpg", quality=80, subsampling=0)
    assert mae("index", "zoo", "-o", "photos.lance").code == 0
    return zoo
