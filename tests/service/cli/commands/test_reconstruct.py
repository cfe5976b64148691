"""`mae reconstruct`."""

import io
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from model.checkpoints.checkpoint import Checkpoint, save
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from service.api.app import create_app
from tests.service.cli.conftest import Mae
from tests.support.command_line import SCRIPT


def read_pixels(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def removed_patches(mask: np.ndarray) -> str:
    return ",".join(map(str, np.flatnonzero(mask)))


@pytest.mark.parametrize("index", [0, 5])
def test_golden_masks_give_golden_pictures(
    mae: Mae, squares: Path, golden: Mapping[str, np.ndarray], index: int
) -> None:
    flags = ("--patches", removed_patches(golden["mask"][index]), "--view", "reconstruction", "--json")
    result = mae("reconstruct", squares / f"{index}.png", "-o", "out.png", *flags)
    assert result.code == 0 and result.err == ""
    difference = read_pixels(Path("out.png")).astype(int) - golden["reconstruction"][index]
    assert np.abs(difference).max() <= 1
    description = json.loads(result.out)
    assert description["loss"] == pytest.approx(golden["loss"][index], abs=1e-4)
    assert description["mask"] == golden["mask"][index].tolist()
    assert (description["seed"], description["mask_ratio"], description["grid"]) == (None, 0.75, [14, 14])
    assert np.mean(
        [error for error, gone in zip(description["error"], description["mask"], strict=True) if gone]
    ) == pytest.approx(description["loss"])


def test_a_seed_gives_the_bits_of_the_route(mae: Mae, squares: Path, photographs: Mapping[str, Image.Image]) -> None:
    photographs["chelsea"].save("cat.jpg")
    parameters = {"seed": "7", "mask_ratio": "0.6", "strategy": "block", "view": "panel"}
    with TestClient(create_app()) as client:
        end = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        answer = client.post("/reconstruct", params=parameters, content=Path("cat.jpg").read_bytes())
    flags = [text for name, value in parameters.items() for text in (f"--{name.replace('_', '-')}", value)]
    result = mae("reconstruct", "cat.jpg", "-o", "out.png", *flags)
    assert Path("out.png").read_bytes() == answer.content
    ratio, loss = answer.headers["x-mae-mask-ratio"], answer.headers["x-mae-loss"]
    assert result == (0, "", f"mae: seed 7, mask ratio {ratio}, loss {loss}\n")


def test_a_seed_that_is_printed_repeats_the_picture(mae: Mae, squares: Path) -> None:
    first = mae("reconstruct", squares / "0.png", "-o", "first.png", "--view", "masked")
    seed = first.err.split()[2].rstrip(",")
    assert mae("reconstruct", squares / "0.png", "-o", "again.png", "--view", "masked", "--seed", seed).code == 0
    assert Path("first.png").read_bytes() == Path("again.png").read_bytes()


def test_a_mask_picture_removes_what_is_white(mae: Mae, squares: Path) -> None:
    mask = np.zeros((224, 224), dtype=np.uint8)
    mask[:32, 16:] = 255
    Image.fromarray(mask).save("mask.png")
    result = mae("reconstruct", squares / "0.png", "-o", "out.png", "--mask", "mask.png", "--view", "masked", "--json")
    grid = np.array(json.loads(result.out)["mask"]).reshape(14, 14)
    np.testing.assert_array_equal(grid, mask[::16, ::16] // 255)
    shown, original = read_pixels(Path("out.png")), read_pixels(squares / "0.png")
    assert (shown[:32, 16:] == 128).all()
    np.testing.assert_array_equal(shown[32:], original[32:])


def test_the_picture_can_go_to_standard_output(squares: Path, environment: Mapping[str, str]) -> None:
    command = [SCRIPT, "reconstruct", str(squares / "0.png"), "-o", "-", "--seed", "1"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("PNG", (224, 224))
    assert done.stderr.startswith(b"mae: seed 1, mask ratio 0.75, loss ")


def test_a_pipe_is_written_to_and_not_replaced(mae: Mae, squares: Path) -> None:
    os.mkfifo("pipe.png")
    reader = os.open("pipe.png", os.O_RDONLY | os.O_NONBLOCK)
    flags = ("--view", "masked", "--mask-ratio", "0.98")  # small enough for the pipe to hold
    assert mae("reconstruct", squares / "0.png", "-o", "pipe.png", *flags).code == 0
    assert os.read(reader, 65536).startswith(b"\x89PNG")
    os.close(reader)
    assert Path("pipe.png").is_fifo()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mask-ratio", "1.5"], "mask_ratio: Input should be less than or equal to 1"),
        (["--mask-ratio", "1"], "mask_ratio: all 196 patches would be removed: nothing is left to reconstruct from"),
        (["--patches", "1,196"], "patches: there is no patch 196: they are numbered 0 to 195"),
        (["--patches", "1", "--seed", "2"], "patches says which patches to remove, so seed cannot be given"),
        (["--mask", "text.png"], "the mask is no image that can be read"),
        (["--mask", "nowhere.png"], "nowhere.png: No such file or directory"),
        (["--view", "cubist"], "view: Input should be 'composite'"),
        (["-o", "nowhere/out.png"], "there is no folder nowhere"),
        (["-o", "out.jpg"], "out.jpg: pictures are written as PNG"),
        (["-o", "-", "--json"], "--json and the picture cannot both go to standard output"),
    ],
)
def test_what_cannot_be_is_one_sentence(mae: Mae, squares: Path, flags: list[str], sentence: str) -> None:
    Path("text.png").write_text("no image")
    result = mae("reconstruct", squares / "0.png", "-o", "out.png", *flags)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith(f"mae: {sentence}") and result.err.count("\n") == 1
    assert not Path("out.png").exists()


def test_a_bad_image_is_named(mae: Mae, squares: Path) -> None:
    Path("text.png").write_text("no image")
    result = mae("reconstruct", "text.png", "-o", "out.png")
    assert result.code == 2 and result.err.startswith("mae: text.png is no image that can be read (JPEG, ")
    big = mae("reconstruct", squares / "0.png", "-o", "out.png", "--max-pixels", "1000")
    assert big.err == "mae: squares/0.png has 224 x 224 pixels; the limit is 1000 in all\n"


def test_a_model_without_a_decoder_is_named(mae: Mae, squares: Path) -> None:
    config = MAEConfig(name="blind", image_size=32, embed_dim=16, depth=1, num_heads=1, decoder_depth=0)
    torch.manual_seed(0)
    tensors = MaskedAutoencoder(config).state_dict()
    checkpoint = Checkpoint(config, Preprocessing(), "mae-serve", tensors)
    save(Path("blind.safetensors"), replace(checkpoint, license="CC0"))
    flags = ("--weights", "blind.safetensors", "--backend", "torch", "--mask-ratio", "0.5")
    result = mae("reconstruct", squares / "0.png", "-o", "out.png", *flags)
    assert result == (2, "", "mae: blind has no decoder: its weights hold the encoder alone\n")
