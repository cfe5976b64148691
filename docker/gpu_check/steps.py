"""The steps in their order, and the one that a process of its own runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from gpu_check.context import Context
from gpu_check.report import Row

BUDGET = 360.0
"""Seconds for all steps unless the caller says otherwise."""
TENSORRT = ("torch-tensorrt", "torch-tensorrt-rtx")


@dataclass(frozen=True)
class Step:
    """One step, which runs in a process of its own."""

    name: str
    seconds: float
    """The longest that it may take."""
    extends: bool = False
    """Whether it may also take what earlier steps left of their seconds."""


def steps_of(context: Context, budget: float = BUDGET) -> list[Step]:
    """All steps, the most telling first.

    Their bounds, step e's aside, add up to six minutes; a larger budget widens all of them, and a smaller one leaves
    out the last steps. What a step does not need goes to b, c and d, and never to a compiler that hangs.
    """
    bounds = {"mae_tiny": 22.0}
    steps = [Step("host", 15), *(Step(f"a {preset}", bounds.get(preset, 40)) for preset in context.numbers.models)]
    steps += [Step("a compile", 28), Step("a autotune", 30), Step("b service", 72, True), Step("c tests", 78, True)]
    steps += [Step("d pretrain", 35, True), Step("e mae_tiny", 60)]
    return [replace(step, seconds=step.seconds * max(1.0, budget / BUDGET)) for step in steps]


def run_step(name: str, context: Context) -> int:
    """Runs a step in this process; the exit code."""
    return _runners(name)[name[0] if name != "host" else name](context)


def tensorrt_distribution(installed: Callable[[str], str] = version) -> str | None:
    """The installed package that builds TensorRT engines; None if there is none."""
    for name in TENSORRT:
        try:
            installed(name)
        except PackageNotFoundError:
            continue
        return name
    return None


def _runners(name: str) -> Mapping[str, Callable[[Context], int]]:
    """By the letter of a step; each imports what it needs, so that a missing package does not stop the others."""
    rest = name.partition(" ")[2]

    def host(context: Context) -> int:
        from gpu_check.host import describe_host

        return describe_host(context)

    def engines(context: Context) -> int:
        from gpu_check.engines import AUTOTUNE, measure_compiled, measure_engine

        if rest in ("compile", "autotune"):
            measure_compiled(context, AUTOTUNE if rest == "autotune" else None)
        else:
            measure_engine(rest, context)
        return 0

    def service(context: Context) -> int:
        from gpu_check.service import measure_service

        measure_service(context)
        return 0

    def tests(context: Context) -> int:
        from gpu_check.gpu_tests import run_tests

        return run_tests(context)

    def pretraining(context: Context) -> int:
        from gpu_check.pretraining import measure_pretraining

        measure_pretraining(context)
        return 0

    def tensorrt(context: Context) -> int:
        distribution = tensorrt_distribution()
        if distribution is None or not find_spec("torch_tensorrt"):
            context.report.add(Row(name, "TensorRT", note=f"left out: neither {' nor '.join(TENSORRT)} is installed"))
            return 0
        if context.backend == "tensorrt":
            context.report.add(Row(name, "TensorRT", note="left out: step a has measured it (BACKEND=tensorrt)"))
            return 0
        from gpu_check.engines import measure_engine

        measure_engine(rest, context, "tensorrt")
        return 0

    return {"host": host, "a": engines, "b": service, "c": tests, "d": pretraining, "e": tensorrt}


def default_backend(environment: Mapping[str, str] = os.environ) -> str:
    """The backend to measure: BACKEND, or else torch, which every host with a GPU can run."""
    return environment.get("BACKEND") or "torch"
