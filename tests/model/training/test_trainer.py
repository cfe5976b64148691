"""The loop of steps, with a loss that the test decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.config import PRESETS, MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from model.training.config import Recipe
from model.training.dataset import Augmentation, ImageDataset
from model.training.distributed import DistributedContext
from model.training.progress import TrainingProgress
from model.training.run import Run
from model.training.session import run_session
from model.training.trainer import DivergedError, Task
from tests.support.training import read_metrics

CONFIG = MAEConfig(**PRESETS["mae_tiny"].model_dump() | {"image_size": 32, "depth": 1, "decoder_depth": 1})


class Objective(nn.Module):
    """The loss of step n is losses[n]."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.losses = iter(losses)

    def forward(self, *batch: Tensor) -> Tensor:
        return 0 * self.weight.sum() + next(self.losses)


class FixedLosses(Task):
    """One image, and losses that are given."""

    def __init__(self, folder: Path, losses: list[float]) -> None:
        Image.new("RGB", (40, 40)).save(folder / "a.png")
        self.objective = Objective(losses)
        self.optimiser = torch.optim.SGD([{"params": self.objective.parameters(), "scale": 1.0}], lr=0.0)
        self.dataset = ImageDataset([str(folder / "a.png")])
        self.augmentation = Augmentation(CONFIG, Preprocessing(), 1, 0.5, "random")
        self.images = {}
        self.description = "1 image"
        self.report_minutes = 1.0

    def checkpoint(self, state: Mapping[str, Tensor]) -> Checkpoint:
        return Checkpoint(CONFIG, Preprocessing(), "mae-serve", dict(MaskedAutoencoder(CONFIG).state_dict()))

    def report(self, step: int, checkpoint: Checkpoint, run: Run, progress: TrainingProgress) -> str:
        return ""


def train(folder: Path, losses: list[float], monkeypatch: pytest.MonkeyPatch, **options: object) -> list[str]:
    """Trains a step for each loss; returns what was said and shown, in order."""
    seen: list[str] = []
    monkeypatch.setattr(TrainingProgress, "say", lambda self, sentence: seen.append(f"said: {sentence}"))
    monkeypatch.setattr(TrainingProgress, "show", lambda self, done, status: seen.append(f"{done:.0%}: {status}"))
    recipe = Recipe(steps=len(losses), batch_size=2, lr=0.5, **options)  # type: ignore[arg-type]
    context = DistributedContext(0, 1, 0, 1, torch.device("cpu"))
    with TrainingProgress(quiet=True) as progress:
        run_session(lambda: FixedLosses(folder, losses), folder / "run", recipe, context, progress, resume=False)
    return seen


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_ends_the_run(loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DivergedError, match=r"not a finite number any more \(step 2\): a lower"):
        train(tmp_path, [1.0, loss, 1.0], monkeypatch)
    assert not (tmp_path / "run").exists()  # there was no checkpoint to go on from


def test_each_step_is_shown_after_what_the_run_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, *shown = train(tmp_path, [4.0, 2.0, 3.0], monkeypatch)
    assert said == (
        f"said: 1 image; 3 steps of 2 images, learning rate 0.5, fp32 on cpu; the run is in {tmp_path / 'run'}"
    )
    assert [line.split("  ")[:2] for line in shown] == [
        ["33%: step 1 of 3", "loss 4.0000"],
        ["67%: step 2 of 3", "loss 3.0000"],
        ["100%: step 3 of 3", "loss 3.0000"],
    ]


@pytest.mark.parametrize(("log_steps", "lines"), [(10, [("3", "3.0")]), (2, [("2", "3.0"), ("3", "3.0")])])
def test_the_last_steps_are_logged_too(
    log_steps: int, lines: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, [4.0, 2.0, 3.0], monkeypatch, log_steps=log_steps)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "run")] == lines


def test_without_a_terminal_there_is_a_line_after_seconds_and_then_one_per_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("model.training.progress.time.monotonic", lambda: now)
    with TrainingProgress(quiet=False) as progress:
        for now in (101.0, 104.9, 105.0, 106.0, 164.9, 165.1, 170.0):
            progress.show(0.5, f"second {now}")
    assert capsys.readouterr().err == "mae: 50%  second 105.0\nmae: 50%  second 165.1\n"
