"""Random weights for a preset that has none: enough where only time is measured."""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoints.checkpoint import Checkpoint, save
from model.config import PRESETS, Preprocessing
from model.nn import build_model


def write_random_weights(preset: str, folder: Path) -> Path:
    """Writes a model of `preset` to `folder`, with the same bytes every time, so that the cache finds its engines."""
    config = PRESETS[preset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
    path = folder / f"{preset}.safetensors"
    save(path, Checkpoint(config, Preprocessing(), "mae-serve", dict(model.state_dict())))
    return path
