"""Runs the training commands in this process, or in another where a test needs signals or several processes."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from service.cli.main import main

BIN = Path(sys.executable).parent
TWO_PROCESSES = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python")


def start(command: str, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts `mae command` in a process of its own."""
    words = [*launcher, str(BIN / "mae"), command, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_command(command: str, *arguments: object, code: int = 0) -> str:
    """Runs `mae command` to the end in this process, and returns its standard error."""
    threads = torch.get_num_threads()
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as ended:
        main([command, *map(str, arguments)])
    torch.set_num_threads(threads)
    assert (ended.value.code or 0) == code, err.getvalue()
    return err.getvalue()


def run_in_process(command: str, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    """Runs `mae command` to the end in a process of its own, and returns its standard error."""
    process = start(command, *arguments, launcher=launcher)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return err


def kill_once_saved(command: str, run: Path, *arguments: object) -> None:
    """Starts a run that saves after every step, and kills it as soon as it has saved."""
    process = start(command, *arguments, "-o", run, "--save-minutes", "0.0001")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "state.pt").is_file():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
