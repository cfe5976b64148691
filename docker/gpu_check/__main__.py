"""The check: installs what was carried, then runs all steps, each as a process of its own (`--step NAME`)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from gpu_check.context import Context, read_context
from gpu_check.report import Report
from gpu_check.runner import SIGNALLED, Stopped, run_steps, stop_on_signals
from gpu_check.settings import SettingError, Settings, read_settings
from gpu_check.steps import run_step, steps_of
from gpu_check.wheels import ARCHIVE, SUMS, WRK, CarryError, add_project_metadata, install, join_parts

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Returns the exit code.

    It is 0 if nothing failed, 1 if something did, 2 if the check could not start, and 128 and the signal's number if a
    signal ended it.
    """
    started = time.monotonic()
    if sys.argv[1:2] == ["--step"]:
        return run_step(sys.argv[2], read_context())
    try:
        settings = read_settings()
        with stop_on_signals():
            return check(settings, started)
    except (SettingError, CarryError) as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped as stopped:  # before the first step or after the last one
        print(f"the check was ended by {stopped}", file=sys.stderr)
        return stopped.exit_code


def check(settings: Settings, started: float) -> int:
    """Installs what was carried, runs all steps and prints the table; the exit code.

    Args:
        settings: what the caller asks for.
        started: the monotonic clock when the check began.

    Raises:
        CarryError: what was carried cannot be installed; then the folder of the results is still empty.
        Stopped: a signal came while no step ran.
    """
    report, log = Report(settings.out), settings.out / "log.txt"
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        lines = prepare_site(settings.wheels, work / "site")
        report.begin()
        log.write_text("".join(f"{line}\n" for line in lines))
        print(*lines, sep="\n", flush=True)
        context = Context(report, work, settings.backend, settings.prove)
        steps = steps_of(context, settings.budget)
        code = run_steps(steps, context, settings.budget, step_environment(context), started=started)
        ending = f"{time.monotonic() - started:.0f} s, results in {settings.out}"
    failures = "".join(f"\nFAILED {failure}" for failure in report.failures())
    if code > SIGNALLED:
        failures += f"\nended by {signal.Signals(code - SIGNALLED).name}: what is missing was left out"
    ending += failures or "\nnothing failed"
    print(f"\n{report.table.read_text()}\n{ending}", flush=True)
    with log.open("a") as file:
        file.write(ending + "\n")
    return code


def prepare_site(wheels: Path, site: Path) -> list[str]:
    """Installs what was carried, if anything was, into the folder `site`; what was done, in words.

    Args:
        wheels: the folder of parts, or of what they were joined to.
        site: the folder to install into.

    Raises:
        CarryError: parts are missing or damaged, or pip refuses a wheel.
    """
    lines = [f"{wheels} is not there: nothing is installed"]
    if wheels.is_dir():
        carried = wheels
        if any(wheels.glob(f"{ARCHIVE}.*")) or (wheels / SUMS).is_file():
            carried = site.with_name("carried")
            join_parts(wheels, carried)
        lines = install(carried, site)
        if (carried / WRK).is_dir():
            shutil.copytree(carried / WRK, site / WRK)
    add_project_metadata(ROOT / "pyproject.toml", site)
    return lines


def step_environment(context: Context) -> dict[str, str]:
    """The environment of the steps, which their servers and workers inherit."""
    site = context.work / "site"
    paths = [str(ROOT), str(ROOT / "docker"), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads of torch that wait would otherwise take the time of those that work, where other programs share the CPUs.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if context.prove else {}
    unset = {name for name in os.environ if name.startswith("MAE_")} - {"MAE_ENGINE_CACHE"}  # the steps name their own
    return {
        **{name: value for name, value in os.environ.items() if name not in unset},
        **waiting,
        **context.to_environment(),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.pathsep.join(paths).split(os.pathsep))),
        "PATH": f"{site / WRK}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "160",
    }


if __name__ == "__main__":
    sys.exit(main())
