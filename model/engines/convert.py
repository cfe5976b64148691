"""The child process of a conversion, which makes the files that an engine is loaded from.

It is a process of its own, so that torch never enters an OpenVINO server, and so that all memory of a compiler, the
GPU's included, is given back. `python -m model.engines.convert FOLDER` reads a `ConversionJob` as one line of JSON from
standard input, which stays open as long as the parent lives. Each line of standard output is JSON as well: it tells
the progress or the failure.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoints.errors import WeightsError
from model.engines.base import Engine, EngineBuildError
from model.engines.job import FAILURES, Calibration, ConversionJob, LoadedModel, ModelSpec

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def main() -> None:
    """Runs the child process."""
    # The output of libraries goes to the log; standard output is ours alone.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    job = _parse_job(json.loads(sys.stdin.readline()))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        convert(job, Path(sys.argv[1]), lambda text: print(json.dumps({"progress": text}), file=replies))
    except (WeightsError, EngineBuildError) as error:
        name = next(name for name, kind in FAILURES.items() if isinstance(error, kind))
        print(json.dumps({"failure": name, "message": str(error)}), file=replies)
        sys.exit(1)


def convert(job: ConversionJob, folder: Path, progress: Callable[[str], None]) -> None:
    """Fills `folder` with graphs or engines, the model's properties, and the reference outputs.

    For torch on a GPU it is the results of torch.compile alone. Modules are imported as the job needs them:
    `fingerprint.SOURCES` lists them, and a test compares the two.

    Args:
        job: the conversion.
        folder: exists, and is empty.
        progress: called with a sentence at every step.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: the model cannot be converted.
    """
    from model.engines.cpu import available_cpus
    from model.engines.eager import configure_torch
    from model.engines.entry import write_model, write_reference
    from model.engines.outputs import collect_outputs
    from model.engines.reference import load_model, reference_engine

    configure_torch(available_cpus())
    checkpoint, model = load_model(job.model)
    if job.target == "torch":  # the server has the model and the reference: it needs the compiler's results alone
        from model.engines.cuda.torch_compile import write_compiled_graphs

        write_compiled_graphs(checkpoint, model, job.precision, job.max_batch_size, folder, progress)
        return
    reference = reference_engine(checkpoint, model)
    if job.target == "openvino":
        _convert_for_openvino(checkpoint, model, reference, job, folder, progress)
    else:
        from model.engines.cuda.tensorrt_build import build_engines

        build_engines(
            checkpoint, model.config, model.preprocessing, job.precision, job.max_batch_size, folder, progress
        )
    progress(f"computing the reference outputs of {model.config.name} in eager float32")
    write_reference(folder, collect_outputs(reference))
    write_model(folder, model)


def _convert_for_openvino(
    checkpoint: Checkpoint,
    model: LoadedModel,
    reference: Engine,
    job: ConversionJob,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    from model.engines.openvino.graphs import write_graphs

    progress(f"converting {model.config.name} for OpenVINO")
    if job.photographs is None:
        write_graphs(checkpoint, model.config, model.preprocessing, folder)
        return
    from model.engines.openvino.quantise import quantise_and_measure

    with tempfile.TemporaryDirectory() as scratch:
        write_graphs(checkpoint, model.config, model.preprocessing, Path(scratch))
        quantise_and_measure(job.photographs, model, reference, Path(scratch), folder, progress)


def _parse_job(content: dict[str, Any]) -> ConversionJob:
    photographs = content["photographs"] and Calibration(**content["photographs"])
    return ConversionJob(**{**content, "model": ModelSpec(**content["model"]), "photographs": photographs})


def _exit_with_parent() -> None:
    """Ends the process when standard input closes.

    Without the parent nobody waits for the result, and the lock of the entry is free: another process may be making the
    same one.
    """
    os.read(0, 1)  # not sys.stdin, which would be locked while the interpreter ends
    os._exit(1)


if __name__ == "__main__":
    main()
