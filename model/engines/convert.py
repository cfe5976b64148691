"""Makes what an OpenVINO engine is loaded from: run as a process of its own, so that torch never enters the server.

`python -m model.engines.convert FOLDER < spec.json`; a failure is one line of JSON on standard output and exit code 1.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError
from model.engines.parity import Answers
from model.source import WeightsError

FACTS, REFERENCE = "model.json", "reference.npz"


@dataclass(frozen=True)
class ModelSpec:
    """Which model: a weights file or folder, and what the operator says about it."""

    path: str
    preset: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    preprocess: dict[str, Any] | None = None
    """Fields of `Preprocessing` that replace the checkpoint's own."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model once its checkpoint has been read."""

    config: MAEConfig
    preprocessing: Preprocessing
    layout: str
    license: str | None


def convert_in_child(spec: ModelSpec, folder: Path) -> None:
    """Fills `folder` with graphs, facts and the parity reference.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: anything else that the child process says.
    """
    child = subprocess.run(
        # -P: without it, a folder named "model" where the server was started would be run in place of this package
        [sys.executable, "-P", "-m", "model.engines.convert", str(folder)],
        input=json.dumps(asdict(spec)).encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise EngineBuildError(f"the conversion was ended by {name}{' (out of memory?)' * (name == 'SIGKILL')}")
    if child.returncode:
        try:
            said = json.loads(child.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise EngineBuildError(f"the conversion ended with exit code {child.returncode}") from None
        raise (WeightsError if said["weights"] else EngineBuildError)(said["message"])


def read_facts(folder: Path) -> ModelFacts:
    """What `convert_in_child` wrote of the model."""
    facts = json.loads((folder / FACTS).read_text())
    return ModelFacts(
        MAEConfig(**facts["config"]), Preprocessing(**facts["preprocessing"]), facts["layout"], facts["license"]
    )


def read_reference(folder: Path) -> Answers:
    """What eager float32 said of the fixed images."""
    with np.load(folder / REFERENCE) as arrays:
        return Answers(arrays["whole"], arrays["masked"], arrays.get("pixels"), arrays.get("error"))


def main() -> None:
    """The child process."""
    spec = ModelSpec(**json.load(sys.stdin))
    try:
        _convert(spec, Path(sys.argv[1]))
    except (WeightsError, EngineBuildError) as error:
        print(json.dumps({"weights": isinstance(error, WeightsError), "message": str(error)}))
        sys.exit(1)


def _convert(spec: ModelSpec, folder: Path) -> None:
    from model.engines.build import load_model, reference_engine
    from model.engines.openvino import convert
    from model.engines.parity import answers

    checkpoint, facts = load_model(spec)
    convert(checkpoint, facts.config, facts.preprocessing, folder)
    arrays: dict[str, Any] = answers(reference_engine(checkpoint, facts)).arrays()
    np.savez(folder / REFERENCE, **arrays)
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


if __name__ == "__main__":
    main()
