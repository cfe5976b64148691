"""Runs the training commands in this process, or in another where a test needs signals or several processes."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from model.training.run import Run
from service.cli.main import main
from tests.support.held_commands import start_and_hold

BIN = Path(sys.executable).parent
TWO_PROCESSES = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python")


def start(
    command: str, *arguments: object, launcher: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts `mae command` in a process of its own, with `environment` added to its variables."""
    words = [*launcher, str(BIN / "mae"), command, *map(str, arguments)]
    variables = os.environ | (environment or {})
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


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


def run_in_two_processes(command: str, *arguments: object) -> str:
    """Runs `mae command` to the end in two processes, and returns the first one's standard error.

    They get the variables that torchrun sets, without torchrun itself, which imports torch once more.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start(command, *arguments, environment={**common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"})
        for rank in ("0", "1")
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs[0][1]


def interrupt_once_saved(command: str, run: Path, *arguments: object) -> None:
    """Runs `mae command` in this process, which saves after every step, and gets SIGTERM when it has saved once."""
    save, saved = Run.save, []

    def save_and_signal(self: Run, *state: Any) -> None:
        save(self, *state)
        if not saved:
            saved.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(Run, "save", save_and_signal):
        run_command(command, *arguments, "-o", run, "--save-minutes", "0.0000001", code=128 + signal.SIGTERM)
    assert saved


def kill_once_saved(command: str, run: Path, *arguments: object) -> None:
    """Starts a run that saves after every step, and kills it when it has saved its first state."""
    save = "model.training.run.Run.save_state"
    process = start_and_hold(save, 1, command, *arguments, "-o", run, "--save-minutes", "0.0000001")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def read_metrics(run: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
