"""The options of `mae bench`: read and checked before anything is measured."""

from __future__ import annotations

from pathlib import Path

from service.benchmark import load
from service.benchmark.run import PARTS, SERVER_PARTS, BenchmarkPlan, Part
from service.benchmark.samples import Sample, read_sample, standard_samples
from service.cli.errors import CommandError
from service.settings import Settings

MAX_SECONDS = 3600.0


def parse_parts(text: str) -> frozenset[Part]:
    """The parts that `text` names, separated by commas, or all of them.

    Raises:
        CommandError: a part has another name.
    """
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return frozenset(PARTS)
    for name in names:
        if name not in PARTS:
            raise CommandError(f"--parts takes {', '.join(PARTS)}, or all (given: {name!r})")
    return frozenset(part for part in PARTS if part in names)


def parse_connections(text: str) -> tuple[int, ...]:
    """The numbers that `text` names, separated by commas: in ascending order, each once.

    Raises:
        CommandError: one is no number of connections.
    """
    counts = [int(number) if number.strip().isdecimal() else 0 for number in text.split(",")]
    if not all(0 < count <= load.MAX_CONNECTIONS for count in counts):
        raise CommandError(f"--connections takes numbers from 1 to {load.MAX_CONNECTIONS} (given: {text})")
    return tuple(sorted(set(counts)))


def check_seconds(option: str, seconds: float) -> float:
    """Returns `seconds`, which `option` was given.

    Raises:
        CommandError: they are not more than 0, or more than an hour.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise CommandError(f"{option} must be more than 0 and at most {MAX_SECONDS:g} (given: {seconds:g})")
    return seconds


def check_plan(plan: BenchmarkPlan, compare: bool, max_autotune: bool) -> None:
    """Refuses options that do not go together, and a load without wrk.

    Raises:
        CommandError: an option lacks another one, or wrk is missing.
    """
    if plan.parts & SERVER_PARTS:
        if load.run_seconds(plan.load_seconds, 1, None) is None:
            raise CommandError(f"--load-seconds must be at most {load.MAX_SECONDS * load.STEADY_SHARE:g}")
        if not load.wrk_is_installed():
            raise CommandError(load.WRK_MISSING)
    if compare and "engine" not in plan.parts:
        raise CommandError("--compare needs the part engine: add it to --parts")
    if max_autotune and not compare:
        raise CommandError("--max-autotune is a baseline: it needs --compare")


def read_samples(folder: Path | None, settings: Settings) -> list[Sample]:
    """The images to measure with: those of `folder`, or generated ones.

    Raises:
        CommandError: the folder has no image that can be used.
    """
    if folder is None:
        return standard_samples()
    try:
        return [read_sample(folder, settings.max_body_bytes)]
    except ValueError as error:
        raise CommandError(str(error)) from error
