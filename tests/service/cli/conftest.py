"""Runs `mae`: in this process where possible, in a process of its own where a signal or a terminal matters."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoints.checkpoint import Checkpoint, save
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.config import MAEConfig, Preprocessing
from model.engines import build as building
from model.engines import context
from model.engines.base import ServedModel
from model.engines.settings import EngineSettings
from model.nn.vit import MaskedAutoencoder
from service.cli.main import main
from tests.support.conversion import convert_in_process


class Result(NamedTuple):
    code: int
    out: str
    err: str


Mae = Callable[..., Result]


def fill_zoo(classes: Sequence[str], count: int) -> Path:
    """Writes a small classifier to `head.safetensors`, and `count` images and a broken one to the folder `zoo`."""
    torch.manual_seed(0)
    config = MAEConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_depth=0, name="zoo")
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=size).astype("f4") for size in ((len(classes), 16), len(classes)))
    heads = Heads(Head(HeadConfig(pool="mean", classes=tuple(classes)), weight, bias))
    tensors = dict(MaskedAutoencoder(config).state_dict())
    save(Path("head.safetensors"), Checkpoint(config, Preprocessing(), "mae-serve", tensors, heads=heads))
    zoo = Path("zoo")
    zoo.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(zoo / f"{number}.png")
    (zoo / "torn.png").write_bytes(b"no image")
    return zoo


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Runs a command in this process; returns its exit code and output."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return Result(code if isinstance(code, int) else 0, *capfd.readouterr())


@pytest.fixture
def environment(warm_cache: Path, probe: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Environment variables without the developer's settings: the probe model in float32, and a shared engine cache."""
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAE_ENGINE_CACHE", str(warm_cache))
    monkeypatch.setenv("MAE_WEIGHTS", str(probe))
    monkeypatch.setenv("MAE_PRECISION", "fp32")  # whichever precision is fastest on this CPU
    return os.environ


@pytest.fixture(scope="session")
def _build_once(engine_cache: Path, probe: Path) -> Callable[..., ServedModel]:
    """A `build` that loads the probe model once per set of options; other models are built every time."""
    real, engines = building.build, dict[str, ServedModel]()

    def build(spec: EngineSettings, *progress: Callable[[str], None]) -> ServedModel:
        if (spec.engine_cache, spec.weights) != (engine_cache, str(probe)):
            return real(spec, *progress)
        if repr(spec) not in engines:
            engines[repr(spec)] = real(spec, *progress)
        return engines[repr(spec)]

    return build


@pytest.fixture
def mae(
    environment: Mapping[str, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    _build_once: Callable[..., ServedModel],
) -> Mae:
    """Runs a command in this process, in which it also converts; returns its exit code and output."""
    monkeypatch.setattr(building, "build", _build_once)
    monkeypatch.setattr(context, "convert_in_child", convert_in_process)
    return partial(run, capfd)


@pytest.fixture(scope="session")
def _squares(golden: Mapping[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    for index, pixels in enumerate(golden["images"]):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def squares(_squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden images as PNG files 0.png to 7.png, in the folder `squares` of the current folder."""
    shutil.copytree(_squares, tmp_path / "squares")
    monkeypatch.chdir(tmp_path)
    return Path("squares")
