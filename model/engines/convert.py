"""Makes what an engine is loaded from, in a process of its own.

So torch never enters an OpenVINO server, and what a compiler takes of memory, the GPU's included, is given back whole.
`python -m model.engines.convert FOLDER`, with a job as one line of JSON on standard input, which stays open as long as
whoever asked is there. Each line of standard output is JSON as well: what is being done, or what went wrong.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.config import MAEConfig, Preprocessing
from model.engines.base import Engine, EngineBuildError, Precision, TensorRTError
from model.engines.calibration import Calibration
from model.engines.parity import Answers
from model.source import WeightsError

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

log = logging.getLogger(__name__)
FACTS, REFERENCE = "model.json", "reference.npz"
FAILURES: dict[str, type[Exception]] = {"weights": WeightsError, "tensorrt": TensorRTError, "build": EngineBuildError}
"""What the child process names, the narrower ones first."""


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


@dataclass(frozen=True)
class Job:
    """What to make of a model."""

    model: ModelSpec
    target: Literal["openvino", "tensorrt"]
    precision: Precision = "fp32"
    """Of the graphs; OpenVINO chooses its own when they are loaded, but for int8."""
    most: int = 0
    """The largest batch that TensorRT builds for."""
    photographs: Calibration | None = None
    """What int8 is calibrated on."""


def convert_in_child(job: Job, folder: Path, progress: Callable[[str], None]) -> None:
    """Fills `folder` with graphs or engines, facts and the parity reference; `progress` is told what is being done.

    Raises:
        WeightsError: the weights cannot be read.
        TensorRTError: TensorRT cannot build the engines, or has ended the process.
        EngineBuildError: anything else that the child process says.
    """
    # -P: without it, a folder named "model" where the server was started would be run in place of this package
    command = [sys.executable, "-P", "-m", "model.engines.convert", str(folder)]
    failure = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended before it listened: its exit code says how
        for line in child.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                log.warning("the conversion says: %s", line)
                continue
            if "progress" in said:
                progress(said["progress"])
            else:
                failure = FAILURES[said["failure"]](said["message"])
        child.wait()  # before its standard input is closed, which would end it
    if failure is not None:
        raise failure
    silent = TensorRTError if job.target == "tensorrt" else EngineBuildError
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise silent(f"the conversion was ended by {name}{' (out of memory?)' * (name == 'SIGKILL')}")
    if child.returncode:
        raise silent(f"the conversion ended with exit code {child.returncode}")


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
    # What libraries print goes to the log; standard output is ours alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _convert(
            _job(job),
            Path(sys.argv[1]),
            lambda words: print(json.dumps({"progress": words}), file=answers),
        )
    except (WeightsError, EngineBuildError) as error:
        name = next(name for name, kind in FAILURES.items() if isinstance(error, kind))
        print(json.dumps({"failure": name, "message": str(error)}), file=answers)
        sys.exit(1)


def _job(said: dict[str, Any]) -> Job:
    photographs = said["photographs"] and Calibration(**said["photographs"])
    return Job(**{**said, "model": ModelSpec(**said["model"]), "photographs": photographs})


def _end_with_parent() -> None:
    """Without whoever asked, nobody waits for the result, and its lock is gone: another may be making the same."""
    os.read(0, 1)  # not sys.stdin, which would be locked while the interpreter ends
    os._exit(1)


def _convert(job: Job, folder: Path, progress: Callable[[str], None]) -> None:
    from model.engines.build import load_model, reference_engine
    from model.engines.parity import answers

    checkpoint, facts = load_model(job.model)
    reference = reference_engine(checkpoint, facts)
    if job.target == "openvino":
        _convert_for_openvino(checkpoint, facts, reference, job, folder, progress)
    else:
        from model.engines.tensorrt_build import build_engines

        build_engines(checkpoint, facts.config, facts.preprocessing, job.precision, job.most, folder, progress)
    progress(f"asking eager float32 about {facts.config.name}")
    arrays: dict[str, Any] = answers(reference).arrays()
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


def _convert_for_openvino(
    checkpoint: Checkpoint,
    facts: ModelFacts,
    reference: Engine,
    job: Job,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    from model.engines.openvino import convert

    progress(f"converting {facts.config.name} for OpenVINO")
    if job.photographs is None:
        convert(checkpoint, facts.config, facts.preprocessing, folder)
        return
    from model.engines.quantise import quantise_on

    with tempfile.TemporaryDirectory() as scratch:
        convert(checkpoint, facts.config, facts.preprocessing, Path(scratch))
        quantise_on(job.photographs, facts, reference, Path(scratch), folder, progress)


if __name__ == "__main__":
    main()
