"""The parent's side of a conversion in a process of its own."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from model.engines.base import EngineBuildError, TensorRTError
from model.engines.job import FAILURES, ConversionJob

log = logging.getLogger(__name__)


def convert_in_child(job: ConversionJob, folder: Path, progress: Callable[[str], None]) -> None:
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
