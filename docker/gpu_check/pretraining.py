"""Step d: pretraining, from files as `mae pretrain` does it, and the step alone, beside the roofline."""

from __future__ import annotations

import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from gpu_check.context import Context
from gpu_check.report import Row
from model.benchmark.roofline import measure_peak, works_of
from model.config import PRESETS, Preprocessing
from model.masking import choose_visible
from model.nn import build_model
from model.nn.base import unfreeze
from model.training.config import Recipe
from model.training.pretrain import Pretraining, make_optimiser
from model.training.run import METRICS
from service.benchmark.samples import generate_sample

STEP = "d pretrain"
COPIES = 32
"""Copies of each generated photograph."""
PASSES = 3
"""The backward pass takes twice the arithmetic of the forward pass."""
MAE = (sys.executable, "-P", "-c", "from service.cli.main import main; main()")


def measure_pretraining(context: Context) -> None:
    """Measures crops per second of each model: the step alone, then `mae pretrain` without torch.compile.

    The images are IMAGES, anything that `mae pretrain` takes, or generated JPEGs of 500 x 334 pixels.
    """
    report, numbers = context.report, context.numbers
    report.plan(
        STEP,
        [
            name
            for preset, batch in numbers.training
            for name in (_name(preset, batch, "the step alone"), _name(preset, batch, "mae pretrain"))
        ],
    )
    images = Path(os.environ.get("IMAGES") or write_images(context.work / "images"))
    peak = measure_peak(context.device, "fp32" if context.prove else "bf16")
    for preset, batch in numbers.training:
        config = PRESETS[preset]
        works = works_of(config, config.num_patches // 4, peak.precision, True)
        roofline = peak.flops_per_s / (PASSES * sum(work.flops for work in works))
        for what, measure in (("the step alone", _measure_step), ("mae pretrain", _measure_command)):
            rate, note = measure(preset, batch, images, context)
            report.add(
                Row(
                    STEP,
                    _name(preset, batch, what),
                    per_s=rate,
                    p50_ms=None if rate is None else 1000 * batch / rate,
                    roofline_per_s=roofline,
                    note=note,
                    failed=rate is None,
                )
            )


def write_images(folder: Path) -> Path:
    """Fills `folder` with JPEGs of 500 x 334 pixels, some of them alike."""
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(generate_sample("JPEG", 500, 334, 8).files):
        first = folder / f"{number}-0.jpg"
        first.write_bytes(file)
        for copy in range(1, COPIES):
            shutil.copy(first, folder / f"{number}-{copy}.jpg")
    return folder


def _name(preset: str, batch: int, what: str) -> str:
    return f"{preset} batch {batch}: {what}"


def _measure_step(preset: str, batch: int, images: Path, context: Context) -> tuple[float, str]:
    """Crops per second of forward, backward and update, with one batch that stays on the device."""
    device, on_gpu = _device(context), context.device == "cuda"
    recipe = Recipe(model=preset)
    config = PRESETS[preset]
    torch.manual_seed(0)
    model = build_model(config)
    unfreeze(model)
    objective = Pretraining(model, Preprocessing(), recipe.loss).to(device).train()
    optimiser = make_optimiser(recipe, objective)
    patches = torch.randint(0, 256, (batch, config.num_patches, config.patch_dim), dtype=torch.uint8, device=device)
    visible = torch.from_numpy(choose_visible("random", config.grid, recipe.mask_ratio, 0)).to(device)
    visible_indices, labels = visible.expand(batch, -1).contiguous(), torch.zeros(batch, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = objective(patches, visible_indices, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    steps, start = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - start < context.numbers.training_seconds / 2:
        for _ in range(context.numbers.log_steps):
            step()
        wait()
        steps += context.numbers.log_steps
    rate = steps * batch / (time.perf_counter() - start)
    memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if on_gpu else ""
    return rate, f"without torch.compile{memory}"


def _device(context: Context) -> torch.device:
    return torch.device(context.device)


def _measure_command(preset: str, batch: int, images: Path, context: Context) -> tuple[float | None, str]:
    """Crops per second of `mae pretrain`, the median of its own figures without the first; None if it failed."""
    numbers, run = context.numbers, context.work / f"run-{preset}"
    options = ["--model", preset, "--batch-size", str(batch), "--minutes", f"{numbers.training_seconds / 60:.4f}"]
    options += ["--log-steps", str(numbers.log_steps), "--preview-images", "0", "--no-compile"]
    command = [*MAE, "pretrain", str(images), "-o", str(run), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ended.stdout, ended.stderr, flush=True)
    if ended.returncode:
        return None, ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}"
    with (run / METRICS).open() as file:
        # Lines of held-out losses have no rate.
        rates = [float(line["images_per_s"]) for line in csv.DictReader(file) if line["images_per_s"]]
    shutil.rmtree(run)
    if not rates:
        return None, f"fewer than {numbers.log_steps} steps in {numbers.training_seconds:g} s"
    source = "photographs given by IMAGES" if os.environ.get("IMAGES") else "JPEGs of 500 x 334"
    return statistics.median(rates[1:] or rates), f"without torch.compile, {source}"
