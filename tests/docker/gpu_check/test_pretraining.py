"""Step d on a GPU: the step alone and `mae pretrain`, beside the roofline; with stand-ins for the device."""

import sys
from pathlib import Path

import pytest
import torch
from gpu_check import pretraining
from gpu_check.context import Context
from gpu_check.pretraining import measure_pretraining, write_images
from PIL import Image

from model.benchmark.roofline import Peak
from tests.docker.gpu_check.conftest import planned, rows

pytestmark = pytest.mark.live
PEAK = Peak(device="cuda", precision="bf16", flops_per_s=8e14, bytes_per_s=3e12)
COMMAND = """
import os, sys
assert sys.argv[1] == "pretrain", sys.argv
value = {name: sys.argv[sys.argv.index(name) + 1] for name in ("-o", "--model", "--batch-size", "--minutes")}
assert "--no-compile" in sys.argv and os.path.isdir(sys.argv[2])
assert (value["--model"], value["--batch-size"], value["--minutes"]) == ("mae_tiny", "2", "0.0003"), value
if os.path.exists(value["-o"] + ".fail"): sys.exit("mae: the disk is full")
os.mkdir(value["-o"])
open(value["-o"] + "/metrics.csv", "w").write("step,images_per_s\\n0,\\n1,1\\n2,40\\n3,60\\n4,50\\n4,\\n")
"""


@pytest.fixture
def synchronised(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether autocast was on at each wait for the device."""
    waits: list[bool] = []
    dtypes: set[torch.dtype] = set()
    forward = pretraining.Pretraining.forward

    def watch(self: pretraining.Pretraining, *arguments: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            dtypes.add(torch.get_autocast_dtype("cpu"))
        return forward(self, *arguments)

    def measure_peak(device: str, precision: str) -> Peak:
        assert (device, precision) == ("cuda", "bf16")
        return PEAK

    monkeypatch.setattr(pretraining, "measure_peak", measure_peak)
    monkeypatch.setattr(pretraining, "_device", lambda context: torch.device("cpu"))
    monkeypatch.setattr(pretraining.Pretraining, "forward", watch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(dtypes == {torch.bfloat16}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_400_000_000)
    monkeypatch.setattr(pretraining, "MAE", (sys.executable, "-c", COMMAND))
    return waits


def test_the_step_alone_and_the_command_are_measured(on_gpu: Context, synchronised: list[bool]) -> None:
    measure_pretraining(on_gpu)
    found = rows(on_gpu)
    assert list(found) == planned(on_gpu) == ["mae_tiny batch 2: the step alone", "mae_tiny batch 2: mae pretrain"]
    step, command = found.values()
    assert step["per_s"] > 0 and step["note"] == "without torch.compile, 3.4 GB"
    assert len(synchronised) >= 2 and all(synchronised), "the GPU must be waited for, after steps in bfloat16"
    assert (command["per_s"], command["p50_ms"], command["failed"]) == (50, 40, False)
    # Each of ViT-Tiny's 5.3 million weights in blocks is used once per visible patch, forward, and twice backward.
    encoder = 3 * 2 * 5.3e6 * 49
    assert PEAK.flops_per_s / (3 * encoder) < command["roofline_per_s"] < PEAK.flops_per_s / encoder


def test_a_command_that_fails_is_told_in_its_own_words(on_gpu: Context, synchronised: list[bool]) -> None:
    (on_gpu.work / "run-mae_tiny.fail").touch()
    measure_pretraining(on_gpu)
    assert rows(on_gpu)["mae_tiny batch 2: mae pretrain"]["note"] == "mae: the disk is full"
    assert on_gpu.report.failures() == ["d pretrain: mae_tiny batch 2: mae pretrain"]


def test_photographs_of_ones_own(
    on_gpu: Context, synchronised: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path))
    measure_pretraining(on_gpu)
    assert "IMAGES" in rows(on_gpu)["mae_tiny batch 2: mae pretrain"]["note"]
    assert not (on_gpu.work / "images").exists()


def test_the_images_are_photographs_in_size(tmp_path: Path) -> None:
    files = sorted(write_images(tmp_path / "images").iterdir())
    assert len(files) == 256
    with Image.open(files[0]) as image:
        assert image.size == (500, 334)
