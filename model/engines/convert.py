"""Makes what an engine is loaded from, in a process of its own.

So torch never enters an OpenVINO server, and what a compiler takes of memory, the GPU's included, is given back whole.
`python -m model.engines.convert FOLDER`, with a job as one line of JSON on standard input, which stays open as long as
whoever asked is there. Each line of standard output is JSON as well: what is being done, or what went wrong.
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
from model.engines.entry import write_facts, write_reference
from model.engines.job import FAILURES, Calibration, ConversionJob, LoadedModel, ModelSpec

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint

log = logging.getLogger(__name__)


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


def _job(said: dict[str, Any]) -> ConversionJob:
    photographs = said["photographs"] and Calibration(**said["photographs"])
    return ConversionJob(**{**said, "model": ModelSpec(**said["model"]), "photographs": photographs})


def _end_with_parent() -> None:
    """Without whoever asked, nobody waits for the result, and its lock is gone: another may be making the same."""
    os.read(0, 1)  # not sys.stdin, which would be locked while the interpreter ends
    os._exit(1)


def _convert(job: ConversionJob, folder: Path, progress: Callable[[str], None]) -> None:
    from model.engines.parity import answers
    from model.engines.reference import load_model, reference_engine

    checkpoint, facts = load_model(job.model)
    reference = reference_engine(checkpoint, facts)
    if job.target == "openvino":
        _convert_for_openvino(checkpoint, facts, reference, job, folder, progress)
    else:
        from model.engines.cuda.tensorrt_build import build_engines

        build_engines(checkpoint, facts.config, facts.preprocessing, job.precision, job.most, folder, progress)
    progress(f"asking eager float32 about {facts.config.name}")
    write_reference(folder, answers(reference))
    write_facts(folder, facts)


def _convert_for_openvino(
    checkpoint: Checkpoint,
    facts: LoadedModel,
    reference: Engine,
    job: ConversionJob,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    from model.engines.openvino.engine import convert

    progress(f"converting {facts.config.name} for OpenVINO")
    if job.photographs is None:
        convert(checkpoint, facts.config, facts.preprocessing, folder)
        return
    from model.engines.openvino.quantise import quantise_on

    with tempfile.TemporaryDirectory() as scratch:
        convert(checkpoint, facts.config, facts.preprocessing, Path(scratch))
        quantise_on(job.photographs, facts, reference, Path(scratch), folder, progress)


if __name__ == "__main__":
    main()
