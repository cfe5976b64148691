"""The steps as processes: their bounds, the budget, signals, and what is said of what was left out."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from gpu_check import context, runner
from gpu_check.context import Context
from gpu_check.runner import KILL_SECONDS, run_steps
from gpu_check.steps import Step, steps_of

from tests.docker.gpu_check.conftest import OF_A_CHECK, rows

pytestmark = pytest.mark.live
HEAD = """
import os, signal, subprocess, sys, time
from gpu_check.context import read_context
from gpu_check.report import Row
report = read_context().report
report.plan(sys.argv[1], ["first", "second", "third"])
report.add(Row(sys.argv[1], "first", per_s=5))
def sleep(seconds):
    print(f"sleeping {seconds}", flush=True)
    time.sleep(600)
"""


class Clock:
    """The time of a check, which passes only while a step sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bounds: list[float] = []
        """The seconds that each step was given."""


def run(
    context: Context,
    programs: dict[str, str],
    bounds: Sequence[float],
    budget: float = 60,
    extends: bool = False,
    clock: Clock | None = None,
) -> int:
    """Runs small programs in place of the steps. A step that calls `sleep` sleeps until its bound is over."""
    clock, log = clock or Clock(), context.report.folder / "log.txt"

    class Process(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait()
            clock.bounds.append(timeout)
            slept = log.read_text().count("sleeping") if log.exists() else 0
            end = time.monotonic() + 60
            while self.poll() is None and (not log.exists() or log.read_text().count("sleeping") == slept):
                assert time.monotonic() < end
                time.sleep(0.005)
            if self.returncode is not None:
                return self.returncode
            clock.now += timeout
            raise subprocess.TimeoutExpired(self.args, timeout)

    steps = [Step(name, bound, extends) for name, bound in zip(programs, bounds, strict=True)]
    paths = [str(Path(__file__).parents[3] / "docker"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **context.to_environment(), "PYTHONPATH": os.pathsep.join(paths)}

    def command(name: str) -> Sequence[str]:
        return sys.executable, "-c", HEAD + programs[name], name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.subprocess, "Popen", Process)
        return run_steps(steps, context, budget, environment, command, lambda: clock.now)


def notes(context: Context, step: str) -> list[str]:
    return [entry["note"] for entry in context.report.read() if entry["step"] == step and "note" in entry]


def test_a_bound_cuts_a_step_and_what_it_left_out_is_named(on_gpu: Context) -> None:
    code = run(on_gpu, {"slow": "sleep(60)", "next": "report.add(Row('next', 'second'))"}, [1.5, 20])
    assert code == 0
    assert notes(on_gpu, "slow") == ["", "left out, its 2 s were over: second; third"]
    assert rows(on_gpu)["second"]["step"] == "next"
    lines = on_gpu.report.table.read_text().splitlines()
    assert lines[0].startswith("step") and lines[1].split()[:3] == ["slow", "first", "5"]


def test_a_step_may_take_what_earlier_ones_left(on_gpu: Context) -> None:
    clock = Clock()
    run(on_gpu, {"slow": "sleep(60)", "quick": "", "last": ""}, [20, 30, 40], budget=600, extends=True, clock=clock)
    assert clock.bounds == [20, 30, 70]


def test_the_budget_ends_everything_and_the_rest_is_named(on_gpu: Context) -> None:
    clock = Clock()
    run(on_gpu, {"slow": "sleep(60)", "next": "", "last": ""}, [30, 20, 20], budget=9, clock=clock)
    assert clock.now == 9 - KILL_SECONDS
    assert "second; third" in notes(on_gpu, "slow")[-1]
    for step in ("next", "last"):
        assert notes(on_gpu, step) == ["left out: no time was left of the budget"]


def test_a_signal_ends_it_and_the_rest_is_named(on_gpu: Context) -> None:
    """The rows were written before, so that they are there after SIGKILL too."""
    code = run(on_gpu, {"slow": "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", "next": ""}, [30, 20])
    assert code == 143
    assert notes(on_gpu, "slow") == ["", "left out, the check was ended by SIGTERM: second; third"]
    assert notes(on_gpu, "next") == ["left out: the check was ended by SIGTERM"]


def test_what_a_step_has_started_ends_with_it(on_gpu: Context, tmp_path: Path) -> None:
    program = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
sleep(60)
"""
    run(on_gpu, {"slow": program}, [2])
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_step_that_breaks_fails_and_the_next_one_runs(on_gpu: Context) -> None:
    code = run(on_gpu, {"bad": "raise SystemExit('no such thing')", "next": ""}, [20, 20])
    assert code == 1
    assert on_gpu.report.failures() == ["bad: bad"]
    assert "exit code 1" in notes(on_gpu, "bad")[-1] and notes(on_gpu, "next") == [""]
    assert "no such thing" in (on_gpu.report.folder / "log.txt").read_text()


def test_without_a_gpu_nothing_else_runs(on_gpu: Context) -> None:
    assert run(on_gpu, {"host": "sys.exit(3)", "next": ""}, [20, 20]) == 2
    assert notes(on_gpu, "next") == []


def test_the_bounds_fit_into_six_minutes(on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "GPU", OF_A_CHECK)
    steps = steps_of(on_gpu)
    assert sum(step.seconds for step in steps if step.name[0] != "e") <= 360
    assert [step.seconds for step in steps_of(on_gpu, 60)] == [step.seconds for step in steps]
    assert [step.seconds for step in steps_of(on_gpu, 720)] == [2 * step.seconds for step in steps]
    assert {step.name for step in steps if step.extends} == {"b service", "c tests", "d pretrain"}
    assert [step.name for step in steps] == [
        *("host", "a mae_base", "a mae_tiny", "a mae_large", "a compile", "a autotune"),
        *("b service", "c tests", "d pretrain", "e mae_tiny"),
    ]


@pytest.mark.parametrize("folder", ["os.environ['TORCHINDUCTOR_CACHE_DIR']", "__import__('tempfile').gettempdir()"])
def test_a_step_shares_no_compiler_folder_and_no_temporary_one_with_another(folder: str, on_gpu: Context) -> None:
    """One that is cut off leaves broken files there."""
    program = f"report.add(Row(sys.argv[1], 'second', note={folder}))"
    run(on_gpu, {"a compile": program, "a autotune": program}, [20, 20])
    folders = {Path(notes(on_gpu, step)[-1]) for step in ("a compile", "a autotune")}
    assert len(folders) == 2 and all(on_gpu.work in folder.parents for folder in folders)
