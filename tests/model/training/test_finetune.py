"""Fine-tuning through the command, as a user runs it, and its parts; small images make quick steps."""

from __future__ import annotations

import io
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss
from torch.nn import functional as F

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.heads import Head
from model.checkpoints.locate import locate
from model.checkpoints.native import HeadConfig
from model.config import PRESETS, Preprocessing
from model.images.folders import LabelledImages
from model.nn.vit import MaskedAutoencoder
from model.training.config import FinetuningRecipe
from model.training.finetune import Finetuning
from model.training.head import LinearHead
from model.training.validation import Validation
from service.api.app import create_app
from service.settings import Settings
from tests.support import training
from tests.support.training import read_metrics

run_command = partial(training.run_command, "finetune")
kill_once_saved = partial(training.kill_once_saved, "finetune")
SMALL = ("--image-size", "32", "--batch-size", "16", "--threads", "1", "--log-steps", "1")
CLASSES = ("blue", "green", "stripes")


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """Noise of a colour, or black and white stripes across, 40 x 40."""
    pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
    if name == "stripes":
        pixels[np.arange(40) // 4 % 2 == rng.integers(2)] += 160
    else:
        pixels[..., {"blue": 2, "green": 1}[name]] += 150
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of each class, and a broken one."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(16):
            picture(name, rng).save(root / name / f"{number:02d}.png")
    (root / "blue" / "torn.png").write_bytes(b"no image")
    return root


def losses(run: Path) -> list[float]:
    return [float(line["loss"]) for line in read_metrics(run) if line["loss"]]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "signs"
    err = run_command(folder, "-o", run, *SMALL, "--steps", "30", "--mixup", "0.2", "--validation-share", "0.25")
    assert "of 12 held-out images right" in err
    return run


def test_accuracy_is_measured_at_the_end(whole: Path) -> None:
    lines = [line for line in read_metrics(whole) if line["val_accuracy"]]
    assert [line["step"] for line in lines] == ["30"]
    assert float(lines[0]["val_accuracy"]) == 1 and float(lines[0]["val_loss"]) < 0.4
    assert len(losses(whole)) == 30 and np.mean(losses(whole)[-5:]) < 0.7 * np.mean(losses(whole)[:5])
    assert list(whole.glob("events.out.tfevents.*"))


def test_served_it_names_the_classes_of_new_images(whole: Path, tmp_path: Path) -> None:
    app = create_app(Settings(weights=str(whole), backend="torch", engine_cache=tmp_path, lanes=1))
    rng = np.random.default_rng(1)
    truth = [name for name in CLASSES for _ in range(4)]
    files: list[Any] = []
    for name in truth:
        picture(name, rng).save(out := io.BytesIO(), "PNG")
        files.append(("image", (name, out.getvalue())))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        assert client.get("/info").json()["engine"]["head"] == {"pool": "mean", "classes": list(CLASSES)}
        answer = client.post("/classify?top_k=2", files=files).json()
    assert answer["model"].startswith("signs@")
    assert [entry["classes"][0]["label"] for entry in answer["classifications"]] == truth
    assert all(entry["classes"][0]["probability"] > 0.6 for entry in answer["classifications"])
    assert {len(entry["classes"]) for entry in answer["classifications"]} == {2}


def test_a_tuned_encoder_has_no_decoder(whole: Path) -> None:
    tuned, packaged = load(locate(str(whole), None).path), load(locate(None, None).path)
    assert (tuned.config.image_size, tuned.config.decoder_depth) == (32, 0)
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.bias"):
        assert not tuned.tensors[name].equal(packaged.tensors[name])


@pytest.mark.live
def test_a_run_goes_on_after_kill_9_as_if_nothing_had_happened(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "signs"
    choices = ("--steps", "30", "--mixup", "0.2", "--validation-share", "0.25")
    kill_once_saved(run, folder, *SMALL, *choices)
    assert len(losses(run)) < 30
    run_command("-o", run, "--resume", "--save-minutes", "9")
    assert losses(run) == losses(whole)
    assert read_metrics(run)[-1]["val_loss"] == read_metrics(whole)[-1]["val_loss"]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def make_objective(**choices: Any) -> Finetuning:
    torch.manual_seed(0)
    config = PRESETS["mae_tiny"].model_copy(update={"image_size": 32, "depth": 1, "decoder_depth": 0})
    head = LinearHead(192, 4, normalised=False)
    torch.nn.init.normal_(head.linear.weight)
    return Finetuning(MaskedAutoencoder(config), Preprocessing(), head, FinetuningRecipe(**choices))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.integers(0, 256, (6, 4, 768), dtype=np.uint8))
    return patches, torch.arange(4, dtype=torch.int32).expand(6, -1), torch.tensor([0, 1, 2, 3, 0, 1])


def logits_of(
    objective: Finetuning, pixels: torch.Tensor, visible_indices: torch.Tensor, pool_index: int
) -> torch.Tensor:
    """By hand: standardised as upstream does, encoded, pooled, classified."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).repeat(256), torch.tensor([0.229, 0.224, 0.225]).repeat(256)
    latent = objective.encoder.model.forward_encoder((pixels / 255 - mean) / std, visible_indices)
    pooled = latent[:, 0] if pool_index == 0 else latent[:, 1:].mean(dim=1)
    return pooled @ objective.head.linear.weight.T + objective.head.linear.bias


@pytest.mark.parametrize(("pool", "pool_index"), [("cls", 0), ("mean", 1)])
def test_without_mixup_the_labels_are_plain(batch: Any, pool: str, pool_index: int) -> None:
    patches, visible_indices, labels = batch
    objective = make_objective(pool=pool, label_smoothing=0.2)
    target = torch.full((6, 4), 0.2 / 4) + 0.8 * torch.eye(4)[labels]
    logits = logits_of(objective, patches.float(), visible_indices, pool_index)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(objective(*batch), expected, rtol=1e-4, atol=1e-5)
    assert int(objective.steps) == 0


def test_mixup_mixes_pixels_and_labels_alike(batch: Any) -> None:
    patches, visible_indices, labels = batch
    objective, again = make_objective(mixup=0.8, label_smoothing=0), make_objective(mixup=0.8, label_smoothing=0)
    shares = [np.random.default_rng((0, 2, step)).beta(0.8, 0.8) for step in range(2)]
    for share in shares:
        mixed = share * patches.float() + (1 - share) * patches.float().flip(0)
        target = share * torch.eye(4)[labels] + (1 - share) * torch.eye(4)[labels.flip(0)]
        logits = logits_of(objective, mixed, visible_indices, 1)
        torch.testing.assert_close(objective(*batch), F.cross_entropy(logits, target.float()), rtol=1e-4, atol=1e-5)
    again.load_state_dict(objective.state_dict())
    assert again(*batch).equal(objective(*batch))  # goes on with the third share


def test_accuracy_and_loss_as_scikit_learn_counts_them(folder: Path) -> None:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    labels = [CLASSES.index(Path(path).parent.name) for path in paths]
    config = PRESETS["mae_tiny"].model_copy(update={"image_size": 32, "depth": 1, "decoder_depth": 0})
    torch.manual_seed(0)
    model = MaskedAutoencoder(config).eval()
    checkpoint = Checkpoint(config, Preprocessing(), "mae-serve", dict(model.state_dict()))
    weight = np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32)
    head = Head(HeadConfig(pool="mean", classes=CLASSES), weight, np.zeros(3, np.float32))
    validation = Validation(LabelledImages(paths, labels, CLASSES, []), threads=1)
    result = validation.measure(checkpoint, head, torch.device("cpu"))

    truth, vectors = [], []
    for path, label in zip(paths, labels, strict=True):
        if not path.endswith("torn.png"):
            pixels = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
            x = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            patches = x.reshape(2, 16, 2, 16, 3).swapaxes(1, 2).reshape(1, 4, 768).astype(np.float32)
            with torch.no_grad():
                latent = model.forward_encoder(torch.from_numpy(patches), torch.arange(4)[None])
            vectors.append(latent[0, 1:].mean(dim=0).numpy())
            truth.append(label)
    probabilities = torch.from_numpy(np.stack(vectors) @ weight.T).double().softmax(dim=1).numpy()
    assert result.images == len(truth) == 48
    assert result.accuracy == accuracy_score(truth, probabilities.argmax(axis=1))
    assert result.loss == pytest.approx(log_loss(truth, probabilities, labels=[0, 1, 2]), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the length of the training is not given"),
        (["--steps", "1", "--layer-decay", "0"], "--layer-decay: Input should be greater than 0"),
        (["--steps", "1", "--pool", "tokens"], "--pool: Input should be 'cls' or 'mean'"),
        (["--steps", "1", "--image-size", "33"], "33 is not a multiple of the patch size, 16"),
        (["--steps", "1", "--probe-iterations", "9"], "--probe-iterations belongs to --frozen"),
        (["--steps", "1", "--validation", ".", "--validation-share", "0.1"], "exclude each other"),
        (["--steps", "1", "--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    err = run_command(folder, "-o", tmp_path / "run", *arguments, code=2)
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_no_classes(folder: Path, tmp_path: Path) -> None:
    assert "lies in no class" in run_command(folder / "blue", "-o", tmp_path / "run", "--steps", "1", code=2)
    assert "name a folder of classes" in run_command("-o", tmp_path / "run", "--steps", "1", code=2)
    other = tmp_path / "other" / "red"
    other.mkdir(parents=True)
    (other / "a.png").touch()
    err = run_command(folder, "-o", tmp_path / "run", "--steps", "1", "--validation", other.parent, code=2)
    assert "is of the class 'red', which is not among the 3 known ones" in err


@pytest.mark.parametrize("frozen", [True, False])
def test_a_class_without_a_readable_image_is_refused(folder: Path, tmp_path: Path, frozen: bool) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(folder, zoo)
    for image in (zoo / "green").iterdir():
        image.write_bytes(b"no image")
    options = ["--frozen"] if frozen else ["--steps", "1"]
    err = run_command(zoo, "-o", tmp_path / "run", *options, code=2)
    assert err == "mae: the class 'green' has no image to learn from that can be read\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_classes_are_told_before_the_first_step(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(folder / "blue", zoo / "blue" / "deep")
    shutil.copytree(folder / "green", zoo / "green")
    (zoo / "green" / "phone.cr3").touch()
    (zoo / ".thumbnails").symlink_to(folder / "blue")
    said, *_ = run_command(zoo, "-o", tmp_path / "run", *SMALL, "--steps", "1").splitlines()
    left_out = "left out: 1 file of formats that are not read (1 .cr3), 1 hidden or system entry"
    assert left_out in [record.getMessage() for record in caplog.records]
    assert said.startswith("mae: 29 images to learn from, 4 held out, of 2 classes: blue, green; 1 step of 16 images")


@pytest.mark.slow
def test_a_run_whose_classes_would_now_differ_does_not_go_on(folder: Path, tmp_path: Path) -> None:
    """An earlier version recorded no classes, and took each innermost folder for one."""
    zoo, run = tmp_path / "zoo", tmp_path / "run"
    shutil.copytree(folder / "blue", zoo / "blue" / "deep")
    shutil.copytree(folder / "green", zoo / "green")
    run_command(zoo, "-o", run, *SMALL, "--steps", "1")
    record = json.loads((run / "recipe.json").read_bytes())
    assert record["data"].pop("classes") == ["blue", "green"]
    (run / "recipe.json").write_text(json.dumps(record))
    err = run_command("-o", run, "--resume", code=2)
    assert err.endswith("was begun by a version that took folders inside a class for classes: begin it anew\n")


def test_a_run_is_not_overwritten_nor_changed(folder: Path, whole: Path, tmp_path: Path) -> None:
    before = (whole / "state.pt").stat().st_mtime_ns
    assert "--resume goes on with it" in run_command(folder, "-o", whole, *SMALL, "--steps", "30", code=2)
    assert "was begun with mixup 0.2" in run_command("-o", whole, "--resume", "--mixup", "0.3", code=2)
    assert "are not the same" in run_command(*classes(tmp_path, 3), "-o", whole, "--resume", code=2)
    assert "other images held out" in run_command("-o", whole, "--resume", "--validation", folder, code=2)
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "recipe.json").write_text('{"recipe": {"mask_ratio": 0.75}, "data": {}}')
    assert "a run of another command" in run_command("-o", tmp_path / "pretrained", "--resume", code=2)
    assert (whole / "state.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_begun_with_a_presets_name_goes_on(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "preset"
    run_command(folder, "-o", run, *SMALL, "--steps", "1", "--weights", "mae_tiny")
    run_command("-o", run, "--resume")


def classes(root: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(2)
    for name in CLASSES:
        (root / "few" / name).mkdir(parents=True)
        for number in range(count):
            picture(name, rng).save(root / "few" / name / f"{number}.png")
    return [root / "few"]
