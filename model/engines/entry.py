"""What an entry of the engine cache holds beside its graphs: facts of the model, and the reference outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from model.config import MAEConfig, Preprocessing
from model.engines.job import LoadedModel
from model.engines.parity import ReferenceOutputs

FACTS, REFERENCE = "model.json", "reference.npz"


def read_facts(folder: Path) -> LoadedModel:
    """What `convert_in_child` wrote of the model."""
    facts = json.loads((folder / FACTS).read_text())
    return LoadedModel(
        MAEConfig(**facts["config"]), Preprocessing(**facts["preprocessing"]), facts["layout"], facts["license"]
    )


def read_reference(folder: Path) -> ReferenceOutputs:
    """What eager float32 said of the fixed images."""
    with np.load(folder / REFERENCE) as arrays:
        return ReferenceOutputs(arrays["whole"], arrays["masked"], arrays.get("pixels"), arrays.get("error"))


def write_facts(folder: Path, facts: LoadedModel) -> None:
    """Writes what `read_facts` reads."""
    (folder / FACTS).write_text(
        json.dumps(
            {
                "config": facts.config.model_dump(),
                "preprocessing": facts.preprocessing.model_dump(),
                "layout": facts.layout,
                "license": facts.license,
            },
            indent=1,
        )
    )


def write_reference(folder: Path, answers: ReferenceOutputs) -> None:
    """Writes what `read_reference` reads."""
    arrays: dict[str, Any] = answers.arrays()
    np.savez(folder / REFERENCE, **arrays)
