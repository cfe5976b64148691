"""Pretraining through the command, as a user runs it; small images, so that a step takes milliseconds."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoints.checkpoint import load
from model.checkpoints.heads import Whitening
from model.checkpoints.locate import locate
from model.config import PRESETS
from model.evaluation.store import store_heads
from model.images.folders import find_images
from model.masking import choose_visible
from model.training.config import Recipe
from model.training.held_out_loss import choose_held_out_images
from model.training.pretrain import starting_point
from model.training.run import RunError
from tests.support import training
from tests.support.training import read_metrics

run_command = partial(training.run_command, "pretrain")
kill_once_saved = partial(training.kill_once_saved, "pretrain")
interrupt_once_saved = partial(training.interrupt_once_saved, "pretrain")
SMALL = ("--image-size", "32", "--batch-size", "8", "--threads", "1", "--log-steps", "1", "--preview-minutes", "9")
SMALL = (*SMALL, "--validation-share", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty smooth pictures at two depths, a broken file and a text."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "deep" / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(20):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        parent = root / "deep" / "deeper" if number % 2 else root
        small.resize((60, 48), Image.Resampling.BICUBIC).save(parent / f"{number}.png")
    (root / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than this")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model with two blocks and one in the decoder, for tests in which any model would do."""
    update = {"depth": 2, "decoder_depth": 1}
    monkeypatch.setitem(PRESETS, "mae_tiny", PRESETS["mae_tiny"].model_copy(update=update))


def test_the_heads_of_the_weights_to_start_from_can_be_said(
    tmp_path: Path, probe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "lite.pth"
    torch.save({"model": load(probe).tensors}, weights)
    config = starting_point(Recipe(init=str(weights), heads=(12, 16)), "mine").config
    assert (config.num_heads, config.decoder_num_heads) == (12, 16)
    assert "guessed" not in caplog.text
    config = starting_point(Recipe(init=str(weights)), "mine").config
    assert (config.num_heads, config.decoder_num_heads) == (3, 4)
    assert "the number of attention heads is guessed from the width: 3 in the encoder (192 wide)" in caplog.text
    with pytest.raises(ValueError, match="heads belong to the weights that init names"):
        Recipe(heads=(12,))


def test_a_classifier_without_normed_tokens_is_no_start(tmp_path: Path, probe: Path) -> None:
    state = {name: tensor for name, tensor in load(probe).tensors.items() if "decoder" not in name}
    state |= {f"fc_{name}": state.pop(name) for name in ("norm.weight", "norm.bias")}
    torch.save({"model": state}, tmp_path / "mae_finetuned.pth")
    message = "is a classifier that norms no tokens, so no decoder can read them: start from the weights that it was"
    with pytest.raises(RunError, match=message):
        starting_point(Recipe(init=str(tmp_path / "mae_finetuned.pth")), "mine")


def losses(run: Path) -> list[float]:
    lines = read_metrics(run)
    assert [int(line["step"]) for line in lines] == list(range(1, len(lines) + 1))
    return [float(line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    choices = (*SMALL, "--steps", "40", "--license", "CC0", "--name", "whole")
    err = run_command(folder, "-o", run, *choices)
    assert "1 of 21 images could not be read" in err
    return run


def test_the_loss_falls(whole: Path) -> None:
    values = losses(whole)
    assert len(values) == 40
    assert np.mean(values[-5:]) < 0.85 * np.mean(values[:5])


def test_the_learning_rate_of_each_step_is_upstreams_in_the_middle_of_the_step(whole: Path) -> None:
    rates = [float(line["lr"]) for line in read_metrics(whole)]
    assert len(rates) == 40
    for step, rate in enumerate(rates):  # the defaults: a peak of 1e-3, 5 % of warm-up, no rate at the end
        done = (step + 0.5) / 40
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        assert rate == pytest.approx(1e-3 * (done / 0.05 if done < 0.05 else cosine)), step


def test_the_weights_can_be_served(whole: Path) -> None:
    source = locate(str(whole), None)
    checkpoint = load(source.path)
    assert (source.name, source.license, checkpoint.layout) == ("whole", "CC0", "mae-serve")
    assert checkpoint.config.image_size == 32 and checkpoint.config.has_decoder


def test_reconstructions_and_scalars_are_kept(whole: Path) -> None:
    with Image.open(whole / "previews" / "step-0000040.png") as sheet:
        assert sheet.size == (4 * 32 + 3 * 8, 6 * 32 + 5 * 8)
    assert list(whole.glob("events.out.tfevents.*"))


def test_a_run_goes_on_after_kill_9_as_if_nothing_had_happened(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    choices = (*SMALL, "--steps", "40", "--license", "CC0", "--name", "whole")
    kill_once_saved(run, folder, *choices)
    assert len(losses(run)) < 40
    run_command("-o", run, "--resume", "--save-minutes", "9")
    assert losses(run) == losses(whole)
    assert (run / "model.safetensors").stat().st_size == (whole / "model.safetensors").stat().st_size
    tensors, others = (load(path / "model.safetensors").tensors for path in (run, whole))
    assert all(tensor.equal(others[name]) for name, tensor in tensors.items())


@pytest.mark.slow
def test_the_loss_on_held_out_images_is_that_of_their_centre_squares(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    choices = (*SMALL[:-1], "0.3", "--steps", "3", "--init", "mae_tiny", "--mask-ratio", "0.5")
    err = run_command(folder, "-o", run, *choices)
    lines = {line["step"]: float(line["val_loss"]) for line in read_metrics(run) if line["val_loss"]}
    assert list(lines) == ["0", "3"]
    recorded = json.loads((run / "recipe.json").read_bytes())
    assert recorded["recipe"]["lr"] == 1e-4 and recorded["data"]["images"] == 21
    held_out = sorted(choose_held_out_images(21, 0.3, seed=0))
    assert len(held_out) == 6 and f"step 3: loss {lines['3']:.4f} on 6 held-out images" in err
    paths, model = find_images([folder])[0], load(run / "model.safetensors").build()
    values = []
    for number, index in enumerate(held_out):
        if paths[index].endswith("torn.jpg"):
            continue
        with Image.open(paths[index]) as image:
            square = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC, box=(6, 0, 54, 48))
        pixels = np.asarray(square).reshape(2, 16, 2, 16, 3).swapaxes(1, 2).reshape(4, 768)
        mean, std = (np.tile(values, 256) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        patches = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))
        visible = torch.from_numpy(choose_visible("random", 2, 0.5, number))
        with torch.no_grad():
            _, prediction, mask = model(patches[None], visible[None])
        error = ((prediction - patches) ** 2).mean(dim=-1)
        values.append(float((error * mask).sum() / mask.sum()))
    assert lines["3"] == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize(("count", "share", "number"), [(1, 0.5, 0), (2, 0.01, 1), (100, 0.05, 5), (10**5, 0.05, 1024)])
def test_held_out_images_are_few_and_never_all(count: int, share: float, number: int) -> None:
    chosen = choose_held_out_images(count, share, seed=3)
    assert len(chosen) == number and chosen <= set(range(count))
    assert chosen == choose_held_out_images(count, share, seed=3)


@pytest.mark.slow
def test_a_run_of_a_version_that_held_nothing_out_goes_on_with_all_images(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    run_command(folder, "-o", run, *SMALL, "--steps", "1")
    record = json.loads((run / "recipe.json").read_bytes())
    del record["recipe"]["validation_share"]
    (run / "recipe.json").write_text(json.dumps(record))
    assert "21 images, 0 held out" in run_command("-o", run, "--resume")


@pytest.mark.slow
def test_muon_is_resumed_to_the_bit(folder: Path, tmp_path: Path, shallow: None) -> None:
    run = tmp_path / "muon"
    choices = (*SMALL, "--optimiser", "muon", "--steps", "4")
    interrupt_once_saved(run, folder, *choices)
    assert len(losses(run)) < 4
    run_command("-o", run, "--resume", "--save-minutes", "9")
    uninterrupted = tmp_path / "uninterrupted"
    run_command(folder, "-o", uninterrupted, *choices)
    assert losses(run) == losses(uninterrupted)
    assert "momentum_buffer" in str(torch.load(run / "state.pt", weights_only=True)["optimiser"]).split("exp_avg")[0]


def test_a_finished_run_that_is_resumed_keeps_the_whitening_of_its_weights(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "whitened"
    shutil.copytree(whole, run)
    weights = run / "model.safetensors"
    width = load(weights).config.embed_dim
    whitening = Whitening(np.zeros(width, np.float32), np.eye(width, dtype=np.float32))
    store_heads(locate(str(run), None), weights, lambda heads: replace(heads, whitening={"mean": whitening}))
    before = weights.read_bytes()
    run_command("-o", run, "--resume")
    assert weights.read_bytes() == before and load(weights).heads.whitening.keys() == {"mean"}


@pytest.mark.slow
def test_a_run_begun_with_a_relative_folder_goes_on_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "relative"
    monkeypatch.chdir(folder.parent)
    run_command(folder.name, "-o", run, *SMALL, "--steps", "1")
    monkeypatch.chdir(tmp_path)
    run_command("-o", run, "--resume")


@pytest.mark.live
def test_sigterm_saves_first(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "ended"
    process = training.start("pretrain", folder, "-o", run, *SMALL, "--minutes", "5")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((run / "metrics.csv").is_file() and len(losses(run)) > 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume goes on from there" in out + err
    assert "skipped:" in err and "torn.jpg" in err, "the log names the images that were left out"
    assert load(locate(str(run), None).path).config.image_size == 32


def test_two_processes_share_a_step(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "shared"
    training.run_in_process("pretrain", folder, "-o", run, *SMALL, "--steps", "5", launcher=training.TWO_PROCESSES)
    alone = tmp_path / "alone"
    run_command(folder, "-o", alone, *SMALL, "--steps", "5")
    assert np.allclose(losses(run), losses(alone), rtol=1e-4)


@pytest.mark.slow
def test_training_from_memory_learns_the_same_and_goes_on_to_the_bit(
    folder: Path, tmp_path: Path, shallow: None
) -> None:
    files, memory, ended = (tmp_path / name for name in ("files", "memory", "ended"))
    run_command(folder, "-o", files, *SMALL, "--steps", "4")
    err = run_command(folder, "-o", memory, *SMALL, "--steps", "4", "--in-memory")
    assert "21 images are in memory: 0 MB on cpu" in err and "1 of 21 images could not be read" in err
    assert np.allclose(losses(memory), losses(files), rtol=1e-3) and losses(memory) != losses(files)
    interrupt_once_saved(ended, folder, *SMALL, "--steps", "4", "--in-memory")
    assert len(losses(ended)) < 4
    assert "it cannot go on with another one" in run_command("-o", ended, "--resume", "--no-in-memory", code=2)
    run_command("-o", ended, "--resume", "--memory-mb", "1", "--save-minutes", "9")
    assert losses(ended) == losses(memory)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "1", "--in-memory", "--image-size", "32", "--memory-mb", "0.02"], "and --memory-mb allows 0.02"),
        (["--steps", "1", "--memory-side", "32"], "--memory-side needs --in-memory"),
        (["--steps", "3", "--epochs", "2"], "epochs, steps and minutes exclude each other"),
        (["--steps", "0"], "--steps: Input should be greater than 0"),
        (["--model", "mae_giant", "--steps", "1"], "there is no preset 'mae_giant'"),
        (["--model", "resnet_tiny", "--image-size", "48", "--steps", "1"], "not a multiple of patch_size 32"),
        (["--image-size", "33", "--steps", "1"], "not a multiple of patch_size 16"),
        (["--model", "resnet_tiny", "--optimiser", "muon", "--steps", "1"], "the model has no matrices"),
        (["--image-size", "32", "--mask-ratio", "0.999", "--steps", "1"], "--mask-ratio 0.999 does not fit"),
        (["--init", "mae_tiny", "--image-size", "100", "--steps", "1"], "not a multiple of patch_size 16"),
        (["--resume"], "holds no run to resume"),
        ([], "the length of the training is not given"),
        (["--steps", "1", "--max-pixels", "0"], "--max-pixels: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    err = run_command(folder, "-o", tmp_path / "run", *arguments, code=2)
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(tmp_path: Path) -> None:
    photographs, own, run = tmp_path / "photographs", tmp_path / "own", tmp_path / "deep" / "run"
    photographs.mkdir()
    own.mkdir()
    (own / "notes.txt").write_text("stays")
    (photographs / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than this")
    for output in (run, own):
        err = run_command(photographs, "-o", output, *SMALL, "--steps", "1", code=2)
        assert err.splitlines()[-1] == "mae: none of the 1 images can be read"
    assert not run.parent.exists() and list(own.iterdir()) == [own / "notes.txt"]


def test_a_run_is_not_overwritten_nor_changed(folder: Path, whole: Path) -> None:
    before = (whole / "state.pt").stat().st_mtime_ns
    assert "--resume goes on with it" in run_command(folder, "-o", whole, *SMALL, "--steps", "40", code=2)
    assert "it cannot go on with another one" in run_command("-o", whole, "--resume", "--lr", "0.5", code=2)
    os.sync()
    assert (whole / "state.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_convolutional_model_learns_goes_on_and_is_started_from(tmp_path: Path) -> None:
    folder, whole, run = tmp_path / "colours", tmp_path / "whole", tmp_path / "resumed"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):  # of one colour each, so that what is removed can be told from what is not
        Image.new("RGB", (100, 100), tuple(rng.integers(0, 256, 3).tolist())).save(folder / f"{number}.png")
    small = ("--model", "resnet_tiny", "--image-size", "96", "--decoder-depth", "1", "--lr", "2e-3", *SMALL[2:])
    run_command(folder, "-o", whole, *small, "--steps", "25")
    values = losses(whole)
    assert np.mean(values[-3:]) < 0.7 * np.mean(values[:3])
    with Image.open(whole / "previews" / "step-0000025.png") as sheet:
        assert sheet.size == (4 * 96 + 3 * 8, 6 * 96 + 5 * 8)
    config = load(locate(str(whole), None).path).config
    assert (config.family, config.image_size, config.decoder_depth) == ("resnet", 96, 1)
    interrupt_once_saved(run, folder, *small, "--steps", "25")
    assert len(losses(run)) < 25
    run_command("-o", run, "--resume", "--save-minutes", "9")
    assert losses(run) == values
    changes = {"model": "resnet_tiny", "init": str(whole), "image_size": 160, "steps": 1}
    start = starting_point(Recipe(**changes), "warm")
    assert all(tensor.equal(start.tensors[name]) for name, tensor in load(whole / "model.safetensors").tensors.items())
    assert (start.config.image_size, start.config.decoder_depth) == (160, 1)
    deeper = starting_point(Recipe(**changes, decoder_depth=3), "deeper")
    assert deeper.config.decoder_depth == 3
    assert deeper.tensors["stem.weight"].equal(start.tensors["stem.weight"])


def test_weights_to_start_from(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "warm"
    run_command(folder, "-o", run, *SMALL, "--steps", "2", "--init", whole, "--warmup", "0", "--lr", "1e-5")
    assert losses(run)[0] < 0.9 * losses(whole)[0]


def test_the_packaged_weights_to_start_from(folder: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "packaged"
    run_command(folder, "-o", run, *SMALL, "--steps", "2", "--init", "mae_tiny", "--warmup", "0", "--lr", "1e-5")
    assert losses(run)[0] < 0.9 * losses(whole)[0]
