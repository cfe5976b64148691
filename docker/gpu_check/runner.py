"""Runs the steps one after the other, each in a process of its own and within its bound and the budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from gpu_check.context import Context
from gpu_check.host import NO_GPU
from gpu_check.report import Row
from gpu_check.steps import Step

LEAST_SECONDS = 5.0
"""A step that has less time than this is left out: Python and torch alone take as long to start."""
KILL_SECONDS = 3.0
"""What is kept of the budget to end the last step and to write what was left out."""
TIMED_OUT = -1
NAMED = 4
"""As many rows that were left out stand in the table by name."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALLED = 128
"""The exit code of a check that a signal ended is this and the signal's number, as in a shell."""


class Stopped(Exception):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        """Of the signal `number`."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = SIGNALLED + number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises Stopped where SIGTERM or SIGINT comes; another one that follows it is ignored."""
    previous = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_steps(
    steps: Sequence[Step],
    context: Context,
    budget: float,
    environment: Mapping[str, str],
    command: Callable[[str], Sequence[str]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    started: float | None = None,
) -> int:
    """Runs `steps`, and says what a bound, the budget or a signal cut off; the exit code of the check.

    Args:
        steps: the steps in their order.
        context: where they report to.
        budget: seconds for all of them, counted from `started`.
        environment: the environment of the steps.
        command: the command of a step by its name.
        clock: seconds that only grow.
        started: the clock when the check began; now, if it is None.
    """
    report = context.report
    end = (clock() if started is None else started) + budget - KILL_SECONDS
    make_command = command or (lambda name: (sys.executable, "-m", "gpu_check", "--step", name))
    waiting = list(steps)
    saved, exit_code = 0.0, None
    try:
        with stop_on_signals():
            while waiting:
                step = waiting[0]
                begun = clock()
                seconds = min(step.seconds + saved * step.extends, end - begun)
                if seconds < min(LEAST_SECONDS, step.seconds):
                    break
                print(f"\n== {step.name}, at most {seconds:.0f} s", flush=True)
                own = {**environment, **_make_folders(step.name, context.work)}
                code = _run(make_command(step.name), seconds, own, report.folder / "log.txt")
                waiting.pop(0)
                saved += step.seconds - (clock() - begun)
                if code == TIMED_OUT:
                    _name_missing(context, step.name, f"its {seconds:.0f} s were over")
                elif code == NO_GPU and step.name == "host":
                    return 2
                elif code:
                    report.add(Row(step.name, step.name, note=f"exit code {code}, see log.txt", failed=True))
        reason = "no time was left of the budget"
    except Stopped as stopped:
        reason, exit_code = f"the check was ended by {stopped}", stopped.exit_code
        if waiting:
            _name_missing(context, waiting.pop(0).name, reason)
    for step in waiting:
        report.add(Row(step.name, "the whole step", note=f"left out: {reason}"))
    return exit_code or (1 if report.failures() else 0)


def _make_folders(step: str, work: Path) -> dict[str, str]:
    """Makes the step's own folders in `work`, which is deleted in the end; the variables that name them.

    A process that is killed leaves temporary files. A compiler that is killed also leaves cut files, which
    torch.compile would take for good ones in a later step.
    """
    names = {"TMPDIR": "tmp", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    folders = {variable: work / name / step.replace(" ", "-") for variable, name in names.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return {variable: str(folder) for variable, folder in folders.items()}


def _name_missing(context: Context, step: str, reason: str) -> None:
    missing = context.report.missing(step) or ["what it had not planned yet"]
    named = "; ".join(missing[:NAMED]) + f"; and {len(missing) - NAMED} more, in rows.jsonl" * (len(missing) > NAMED)
    note = f"left out, {reason}: {named}"
    context.report.add(Row(step, f"{len(missing)} rows", note=note, details={"left_out": missing}))


def _run(command: Sequence[str], seconds: float, environment: Mapping[str, str], log: Path) -> int:
    """Runs a step with its output on the terminal and in the log; its exit code, or TIMED_OUT."""
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    copier = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
    copier.start()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        _kill_group(process)
        copier.join(2)  # a server of the step may hold the pipe for a moment


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a step and what it has started; its servers, which have sessions of their own, end with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _copy(source: IO[bytes], log: Path) -> None:
    with source, log.open("ab", buffering=0) as file:
        for line in source:
            file.write(line)
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
