"""What every step knows: where results go, what runs, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_check.report import Report

OPERATIONS: tuple[tuple[Literal["embed", "reconstruct"], int], ...] = (
    ("embed", 1),
    ("reconstruct", 4),
    ("embed", 4),
    ("reconstruct", 1),
)
"""Operations with the divisor of N that gives K: the service's defaults come first."""


@dataclass(frozen=True)
class Numbers:
    """Sizes and durations of the measurements."""

    models: tuple[str, ...]
    """Presets; the first is also the one that is compiled with max-autotune."""
    batches: tuple[int, ...]
    """Batch sizes; the first is also run on all lanes, and is the one that is compiled."""
    seconds: float
    """Seconds for each figure of an engine."""
    workers: tuple[int, ...]
    """Settings of HTTP_WORKERS."""
    connections: tuple[int, ...]
    """Connections that send at the same time; the first is for all routes, the others are for /embed alone."""
    load_seconds: float
    """Seconds that are measured under each load."""
    endurance_batches: int
    """Batches over which memory must stay flat."""
    training: tuple[tuple[str, int], ...]
    """Presets to pretrain, each with its batch size."""
    training_seconds: float
    """Seconds of each pretraining."""
    log_steps: int
    """Steps of pretraining per figure."""


GPU = Numbers(
    models=("mae_base", "mae_tiny", "mae_large"),
    batches=(64, 1, 8),
    seconds=0.3,
    workers=(8, 0, 4, 12),
    connections=(128, 32, 256),
    load_seconds=1.5,
    endurance_batches=1000,
    training=(("mae_tiny", 512), ("mae_base", 256)),
    training_seconds=5,
    log_steps=5,
)
PROOF = Numbers(
    models=("mae_tiny", "mae_small"),
    batches=(2, 1),
    seconds=0.1,
    workers=(1, 0),
    connections=(2, 4),
    load_seconds=4,
    endurance_batches=100,
    training=(("mae_tiny", 8), ("mae_small", 4)),
    training_seconds=5,
    log_steps=1,
)
"""Small numbers, which show on a CPU that every step runs; they say nothing about speed."""


@dataclass(frozen=True)
class Context:
    """The surroundings of a step."""

    report: Report
    work: Path
    """A folder for weights, images and engines, which all steps share and which is deleted in the end."""
    backend: str
    """The backend that serves: torch, or tensorrt where it is installed."""
    prove: bool
    """Whether this is a run with small numbers on the CPU."""

    @property
    def numbers(self) -> Numbers:
        """Sizes and durations."""
        return PROOF if self.prove else GPU

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device that is measured."""
        return "cpu" if self.prove else "cuda"

    @property
    def precision(self) -> Literal["fp32", "fp16"]:
        """The precision of the engines that are measured."""
        return "fp32" if self.prove else "fp16"

    @property
    def engine_cache(self) -> Path:
        """The folder of compiled engines: MAE_ENGINE_CACHE, where engines were carried along, or a new one."""
        return Path(os.environ.get("MAE_ENGINE_CACHE") or self.work / "engines")

    def engine_settings(self) -> dict[str, Any]:
        """The settings that engines and servers are measured with."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "cuda_graphs": self.device == "cuda",
            "engine_cache": self.engine_cache,
        }

    def to_environment(self) -> dict[str, str]:
        """The variables from which `read_context` makes the same context in another process."""
        return {
            "GPU_CHECK_OUT": str(self.report.folder),
            "GPU_CHECK_WORK": str(self.work),
            "BACKEND": self.backend,
            "PROVE": "1" if self.prove else "",
        }


def read_context(environment: Mapping[str, str] = os.environ) -> Context:
    """The context that `Context.to_environment` wrote."""
    return Context(
        Report(Path(environment["GPU_CHECK_OUT"])),
        Path(environment["GPU_CHECK_WORK"]),
        environment["BACKEND"],
        bool(environment["PROVE"]),
    )


def weights_of(preset: str, context: Context) -> Path:
    """The packaged weights of `preset`, or random ones, which are written once for all steps."""
    from model.benchmark.weights import write_random_weights
    from model.checkpoints.locate import PACKAGED

    packaged, random = PACKAGED / f"{preset}.safetensors", context.work / f"{preset}.safetensors"
    if packaged.is_file():
        return packaged
    if not random.is_file():
        folder = context.work / "writing"  # renamed when it is whole: a step may be killed meanwhile
        folder.mkdir(exist_ok=True)
        write_random_weights(preset, folder).rename(random)
    return random
