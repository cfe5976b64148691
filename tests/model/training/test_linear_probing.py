"""`mae finetune --frozen`, as a user runs it."""

from __future__ import annotations

import csv
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.checkpoints.checkpoint import load
from model.checkpoints.locate import locate
from model.checkpoints.native import HeadConfig
from model.images.open_image import open_image
from model.images.preprocess import patches_of
from model.training import linear_probing
from model.training.config import FinetuningRecipe
from model.training.distributed import DistributedContext
from model.training.finetune import finetune
from model.training.progress import TrainingProgress
from tests.support import training
from tests.support.training import read_metrics

pytestmark = pytest.mark.slow

run_command = partial(training.run_command, "finetune")
CLASSES = ("blue", "green", "stripes")
SMALL = ("--image-size", "32", "--threads", "1")


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """Noise with a slight colour, or with black and white stripes, 40 x 40."""
    pixels = rng.integers(0, 200, (40, 40, 3), dtype=np.uint8)
    if name == "stripes":
        pixels[np.arange(40) // 4 % 2 == rng.integers(2)] += 18
    else:
        pixels[..., {"blue": 2, "green": 1}[name]] += 8
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `test` with 20 images of each class, and a broken one in `train`."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in CLASSES:
        for part in ("train", "test"):
            (root / part / name).mkdir(parents=True)
            for number in range(20):
                picture(name, rng).save(root / part / name / f"{number:02d}.png")
    (root / "train" / "blue" / "torn.png").write_bytes(b"no image")
    return root


def vectors_of(folder: Path, pool: int) -> tuple[np.ndarray, list[int]]:
    """By hand: pooled vectors of the packaged model at 32 pixels, and the classes."""
    checkpoint = load(locate(None, None).path)
    model = checkpoint.build(32)
    mean, std = (torch.tensor(values).repeat(256) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    vectors, labels = [], []
    for path in sorted(folder.rglob("[0-9]*.png")):
        patches = torch.from_numpy(patches_of(open_image(str(path)), model.config, checkpoint.preprocessing))
        with torch.no_grad():
            latent = model.forward_encoder((patches[None] / 255 - mean) / std, torch.arange(4)[None])[0]
        vectors.append((latent[0] if pool == 0 else latent[1:].mean(dim=0)).numpy())
        labels.append(CLASSES.index(path.parent.name))
    return np.stack(vectors), labels


@pytest.mark.parametrize(("pool", "index"), [("cls", 0), ("mean", 1)])
def test_the_head_is_logistic_regression_on_the_vectors(folder: Path, tmp_path: Path, pool: str, index: int) -> None:
    run = tmp_path / "probe"
    err = run_command(folder / "train", "-o", run, *SMALL, "--frozen", "--pool", pool, "--validation", folder / "test")
    (vectors, labels), (others, truth) = vectors_of(folder / "train", index), vectors_of(folder / "test", index)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(vectors, labels)
    expected = accuracy_score(truth, pipeline.predict(others))
    [line] = read_metrics(run)
    assert 0.35 < expected < 1  # better than chance, and there is something to get wrong
    assert float(line["val_accuracy"]) == pytest.approx(expected, abs=1e-6)
    assert float(line["val_loss"]) == pytest.approx(log_loss(truth, pipeline.predict_proba(others)), rel=1e-3)
    assert line["images"] == "60" and f"{expected:.2%} of 60 held-out images right" in err
    assert "1 of 121 images could not be read" in err
    probe, packaged = load(locate(str(run), None).path), load(locate(None, None).path)
    assert probe.config.has_decoder and probe.heads.head is not None
    assert probe.heads.head.config == HeadConfig(pool=pool, classes=CLASSES)
    for name, tensor in probe.tensors.items():
        assert name.endswith("pos_embed") or tensor.equal(packaged.tensors[name])


def test_it_says_what_it_will_do_before_it_does_it(folder: Path, tmp_path: Path) -> None:
    first, *_ = run_command(folder / "test", "-o", tmp_path / "run", *SMALL, "--frozen").splitlines()
    assert (
        "54 images to learn from, 6 held out, of 3 classes: blue, green, stripes; each image is encoded once" in first
    )


@pytest.mark.live
def test_two_processes_share_the_images(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "alone", tmp_path / "shared"
    run_command(folder / "train", "-o", runs[0], *SMALL, "--frozen", "--name", "probe")
    training.run_in_two_processes("finetune", folder / "train", "-o", runs[1], *SMALL, "--frozen", "--name", "probe")
    heads = [load(run / "model.safetensors").heads.head for run in runs]
    assert heads[0] is not None and heads[1] is not None
    np.testing.assert_allclose(heads[1].weight, heads[0].weight, atol=1e-3)
    assert [line["images"] for line in read_metrics(runs[1])] == ["54"]


def test_an_interrupted_run_goes_on_from_its_vectors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probing, "CHUNK", 32)
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = (*SMALL, "--frozen", "--name", "probe")
    run_command(folder / "train", "-o", whole, *arguments)
    shown: list[str] = []

    def interrupt(progress: TrainingProgress, done: float, status: str) -> None:
        shown.append(status)
        if len(shown) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "show", interrupt)
    run_command(folder / "train", "-o", run, *arguments, code=128 + signal.SIGTERM)
    assert not (run / "model.safetensors").exists() and "32 of 61 images" in shown[-1]
    run_command("-o", run, "--resume")
    assert "32 of" not in shown[1] and "61 of 61" in shown[-2]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before = (run / "model.safetensors").stat().st_mtime_ns
    run_command("-o", run, "--resume")  # complete
    assert (run / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("option", ["--lr", "--epochs", "--batch-size", "--mixup", "--precision", "--warmup"])
def test_options_of_training_by_steps_are_refused_by_name(folder: Path, tmp_path: Path, option: str) -> None:
    value = {"--precision": "fp32", "--warmup": "0"}.get(option, "1")
    err = run_command(folder / "train", "-o", tmp_path / "run", "--frozen", option, value, code=2)
    assert err == f"mae: --frozen fits the head by LBFGS and makes no steps: leave {option} out\n"


def test_a_solver_that_is_stopped_early_is_said(folder: Path, tmp_path: Path) -> None:
    err = run_command(folder / "test", "-o", tmp_path / "run", *SMALL, "--frozen", "--probe-iterations", "2")
    assert "stopped after 2 iterations; --probe-iterations allows it more" in err


def test_a_failed_start_leaves_no_folder(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "torn" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "torn" / name / f"{number}.png").write_bytes(b"no image")
    err = run_command(tmp_path / "torn", "-o", tmp_path / "deep" / "run", *SMALL, "--frozen", code=2)
    assert "can be read" in err.splitlines()[-1] and not (tmp_path / "deep").exists()


def test_a_run_that_was_begun_by_steps_goes_on_by_steps(folder: Path, tmp_path: Path) -> None:
    """As an earlier version began it: a frozen recipe with a bound, and without the fields of later versions."""
    run = tmp_path / "old"
    recipe = FinetuningRecipe(frozen=True, steps=4, batch_size=16, image_size=32, threads=1, log_steps=1, lr=0.02)
    context = DistributedContext(0, 1, 0, 1, torch.device("cpu"))
    with TrainingProgress(quiet=True) as progress:
        finetune(folder / "test", None, run, recipe, context, progress, resume=False)
    written: dict[str, Any] = json.loads((run / "recipe.json").read_bytes())
    del written["recipe"]["probe_iterations"]
    (run / "recipe.json").write_text(json.dumps(written))
    (run / "state.pt").unlink()  # ended before its first checkpoint
    run_command("-o", run, "--resume")
    with (run / "metrics.csv").open(newline="") as file:
        assert [line["lr"] != "" for line in csv.DictReader(file)] == [True] * 4 + [False]
    head = load(run / "model.safetensors").heads.head
    assert head is not None and head.weight.shape == (3, 192)
