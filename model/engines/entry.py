"""The files of a cache entry beside its graphs: the model's properties, and the reference outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints.heads import Head
from model.checkpoints.native import HeadConfig
from model.config import MAEConfig, Preprocessing
from model.engines.job import LoadedModel
from model.engines.outputs import EngineOutputs

MODEL, HEAD, REFERENCE = "model.json", "head.npz", "reference.npz"


def read_model(folder: Path) -> LoadedModel:
    """Reads the model's properties, which `write_model` wrote."""
    content = json.loads((folder / MODEL).read_text())
    return LoadedModel(
        MAEConfig(**content["config"]),
        Preprocessing(**content["preprocessing"]),
        content["layout"],
        content["license"],
        tuple(content["notes"]),
        read_head(folder),
    )


def read_head(folder: Path) -> Head | None:
    """Reads the classification head, which `write_model` wrote if there is one."""
    config = json.loads((folder / MODEL).read_text())["head"]
    if config is None:
        return None
    with np.load(folder / HEAD) as arrays:
        return Head(HeadConfig(**config), arrays["weight"], arrays["bias"])


def write_model(folder: Path, model: LoadedModel) -> None:
    """Writes the model's sizes, preprocessing, checkpoint format, licence, notes and classification head."""
    head = model.head
    content = {
        "config": model.config.model_dump(),
        "preprocessing": model.preprocessing.model_dump(),
        "layout": model.layout,
        "license": model.license,
        "notes": model.notes,
        "head": head and head.config.model_dump(),
    }
    (folder / MODEL).write_text(json.dumps(content, indent=1))
    if head is not None:
        np.savez(folder / HEAD, weight=head.weight, bias=head.bias)


def read_reference(folder: Path) -> EngineOutputs:
    """Reads the outputs of eager float32 for the fixed images."""
    with np.load(folder / REFERENCE) as arrays:
        return EngineOutputs(arrays["whole"], arrays["masked"], arrays.get("pixels"), arrays.get("error"))


def write_reference(folder: Path, outputs: EngineOutputs) -> None:
    """Writes the outputs of eager float32 for the fixed images."""
    arrays: dict[str, Any] = outputs.arrays()
    np.savez(folder / REFERENCE, **arrays)
