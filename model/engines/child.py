"""Starts a conversion in a child process, and reads what the child reports."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from model.engines.base import BuildTimeout, EngineBuildError, TensorRTError
from model.engines.job import FAILURES, ConversionJob

log = logging.getLogger(__name__)
SCANT_BYTES = 4_000_000
"""A disk with less room than this has probably been filled by the conversion: the smallest graph has more bytes."""


def convert_in_child(
    job: ConversionJob, folder: Path, progress: Callable[[str], None], deadline: float | None = None
) -> None:
    """Has a child process fill `folder` with graphs or engines, the model's properties, and the reference outputs.

    Args:
        job: the conversion.
        folder: exists, and is empty.
        progress: called with a sentence at every step.
        deadline: the time (of `time.monotonic`) at which the child is ended, with its own children; None for no limit.

    Raises:
        BuildTimeout: the deadline has passed.
        WeightsError: the weights cannot be read.
        TensorRTError: TensorRT cannot build the engines, or has ended the process.
        EngineBuildError: the child process reports another failure, or dies.
    """
    # -P: without it, a folder named "model" where the server was started would be run instead of this package
    command = [sys.executable, "-P", "-m", "model.engines.convert", str(folder)]
    failure = None
    # With a deadline the child leads a process group of its own, so that a compiler's workers end with it.
    group = None if deadline is None else 0
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=group) as child,
        _Limit(child, deadline) as limit,
    ):
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:  # the child has ended already: its exit code says how
            with suppress(BrokenPipeError):
                child.stdin.close()  # or else what is left unwritten is tried again later
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
    if limit.over:
        raise BuildTimeout("the conversion was ended: its time was over")
    if failure is not None:
        raise failure
    error = TensorRTError if job.target == "tensorrt" else EngineBuildError
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise error(f"the conversion was ended by {name}{hint}")
    if child.returncode:
        free = shutil.disk_usage(folder).free  # OpenVINO itself speaks of an "iostream error"
        hint = f" (no space left in {folder.parent}: {free / 1e6:.1f} MB)" if free < SCANT_BYTES else ""
        raise error(f"the conversion ended with exit code {child.returncode}{hint}")


class _Limit:
    """Ends a child process and its group at a deadline; `over` says afterwards whether it has."""

    def __init__(self, child: subprocess.Popen[bytes], deadline: float | None) -> None:
        self.over = False
        self._child = child
        self._timer = None if deadline is None else threading.Timer(max(0.0, deadline - time.monotonic()), self._end)

    def __enter__(self) -> _Limit:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if self._child.poll() is None:
            self.over = True
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self._child.pid, signal.SIGKILL)
