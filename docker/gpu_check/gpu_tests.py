"""Step c: the tests marked gpu, each with a row as soon as it ends. This module is also the plugin that writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from gpu_check.context import Context, read_context
from gpu_check.report import Row

STEP = "c tests"
TESTS = "tests/gpu"


def run_tests(context: Context) -> int:
    """Runs the tests with pytest's own plugins alone, since those that a host has may add warnings; the exit code."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        TESTS,
        "-v",
        "-p",
        "no:cacheprovider",
        "-p",
        "gpu_check.gpu_tests",
        "--gpu-no-compile",  # takes longer than all other tests together
    ]
    command += ["--gpu-batches", str(context.numbers.endurance_batches)]
    if context.prove:
        command += ["--gpu-backend", "torch"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with (context.report.folder / "tests.txt").open("wb") as out:
        return subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False).returncode


_outcomes: Counter[str] = Counter()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Plans a row for each test."""
    read_context().report.plan(STEP, [*(_short(item.nodeid) for item in session.items), "all tests"])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds a row when a test has ended; the table shows those that failed or were skipped."""
    if report.when != "call" and report.passed:
        return
    if report.when == "teardown" and report.skipped:
        return
    outcome, note = report.outcome, ""
    if report.skipped and isinstance(report.longrepr, tuple):
        note = f"left out: {report.longrepr[2].removeprefix('Skipped: ')}"
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        note = str(crash.message if crash else report.longrepr).strip().partition("\n")[0]
    _outcomes[outcome] += 1
    row = Row(STEP, _short(report.nodeid), note=note, failed=report.failed, details={"seconds": report.duration})
    read_context().report.add(row, in_table=not report.passed)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Adds a row that counts the tests."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(_outcomes.items())) or "no test ran"
    read_context().report.add(Row(STEP, "all tests", note=counts, failed=not _outcomes))


def _short(nodeid: str) -> str:
    return nodeid.removeprefix(f"{TESTS}/")
