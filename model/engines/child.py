"""Starts a conversion in a child process, and reads what the child reports."""

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
    """Has a child process fill `folder` with graphs or engines, the model's properties, and the reference outputs.

    Args:
        job: the conversion.
        folder: exists, and is empty.
        progress: called with a sentence at every step.

    Raises:
        WeightsError: the weights cannot be read.
        TensorRTError: TensorRT cannot build the engines, or has ended the process.
        EngineBuildError: the child process reports another failure, or dies.
    """
    # -P: without it, a folder named "model" where the server was started would be run instead of this package
    command = [sys.executable, "-P", "-m", "model.engines.convert", str(folder)]
    failure = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # the child has ended already: its exit code says how
        for line in child.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                log.warning("unexpected output of the conversion: %s", line)
                continue
            if "progress" in message:
                progress(message["progress"])
            else:
                failure = FAILURES[message["failure"]](message["message"])
        child.wait()  # before its standard input is closed, which would end it
    if failure is not None:
        raise failure
    error = TensorRTError if job.target == "tensorrt" else EngineBuildError
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise error(f"the conversion was ended by {name}{hint}")
    if child.returncode:
        raise error(f"the conversion ended with exit code {child.returncode}")
