"""The step before all others: what this host is, and which of the project's requirements it meets."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_check.context import Context
from gpu_check.report import Row

STEP = "host"
ROOT = Path(__file__).parents[2]
NO_GPU = 3
"""Exit code of the step where torch finds no GPU."""
TOOLS = ("nvidia-smi", "nvcc", "cc", "wrk")


def describe_host(context: Context) -> int:
    """Writes host.txt and the rows of the table that tell what was found; the exit code."""
    import torch

    from model.engines.cpu import available_cpus, cpu_name

    report = context.report
    report.plan(STEP, ["machine", "device", "packages"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [
        f"{os.uname().sysname} {os.uname().release}, Python {platform.python_version()}",
        f"{cpu_name()}, {available_cpus()} cores, {memory / 2**30:.0f} GiB",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        *(f"{tool}: {shutil.which(tool) or 'not there'}" for tool in TOOLS),
    ]
    report.add(Row(STEP, "machine", note="; ".join(lines[:3])))
    missing = list(find_unmet(requirements_of(ROOT / "pyproject.toml")))
    (report.folder / "host.txt").write_text("\n".join([*lines, *missing, *_run_tools()]) + "\n")
    report.add(Row(STEP, "packages", note="; ".join(missing) or "all requirements are met"))
    if context.prove:
        report.add(Row(STEP, "device", note="PROVE=1: small numbers on the CPU, which say nothing about speed"))
        return 0
    if not torch.cuda.is_available():
        report.add(Row(STEP, "device", note="torch finds no GPU", failed=True))
        return NO_GPU
    properties = torch.cuda.get_device_properties(0)
    report.add(
        Row(
            STEP,
            "device",
            note=f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors, "
            f"{torch.cuda.device_count()} visible",
        )
    )
    return 0


def requirements_of(pyproject: Path) -> list[str]:
    """The project's requirements."""
    return list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])


def find_unmet(requirements: Iterable[str], installed: Callable[[str], str] = version) -> Iterator[str]:
    """Those of `requirements` that are missing or of another version, in words.

    Args:
        requirements: as in pyproject.toml.
        installed: the version of a package; it raises PackageNotFoundError.
    """
    for line in requirements:
        name = re.split(r"[^\w.-]", line)[0]
        try:
            found = installed(name)
        except PackageNotFoundError:
            yield f"{name} is missing"
            continue
        try:
            from packaging.requirements import Requirement
        except ImportError:  # then only what is missing can be told
            continue
        if not Requirement(line).specifier.contains(found, prereleases=True):
            yield f"{name} is {found}, but the project asks for {line.removeprefix(name)}"


def _run_tools() -> Iterator[str]:
    for command in (["nvidia-smi"], ["nvcc", "--version"]):
        if shutil.which(command[0]):
            try:
                yield subprocess.run(command, capture_output=True, text=True, timeout=15, check=False).stdout
            except subprocess.TimeoutExpired:
                yield f"{command[0]} has not answered within 15 s"
