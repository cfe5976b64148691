"""What the caller asks for by variables of the environment, checked before anything runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_check.steps import BUDGET, default_backend
from gpu_check.wheels import ARCHIVE, SUMS, WRK

BACKENDS = ("torch", "tensorrt")
WHEELS = Path("gpu-wheels")
"""The folder of packages where the caller names none; it need not be there."""


class SettingError(Exception):
    """A variable has a value that the check cannot run with; the message is one sentence."""


@dataclass(frozen=True)
class Settings:
    """The variables at the head of gpu_check.sh that the check itself reads."""

    out: Path
    """An empty folder, which is there."""
    wheels: Path
    """The folder of packages: it has some, or the caller has not named it."""
    budget: float
    """Seconds for all steps."""
    backend: str
    """torch or tensorrt."""
    prove: bool
    """Whether to run with small numbers on the CPU."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the variables, and makes the folder of the results.

    Raises:
        SettingError: one of them has a value that cannot be.
    """
    backend = default_backend(environment)
    if backend not in BACKENDS:
        raise SettingError(f"BACKEND is {backend}, but must be {' or '.join(BACKENDS)}.")
    budget = read_budget(environment.get("BUDGET") or str(BUDGET))
    wheels = check_wheels(Path(environment["WHEELS"])) if environment.get("WHEELS") else WHEELS
    out = make_empty(Path(environment.get("OUT") or f"gpu-check-{time.strftime('%Y%m%d-%H%M%S')}").absolute())
    return Settings(out, wheels, budget, backend, bool(environment.get("PROVE")))


def read_budget(text: str) -> float:
    """The seconds in `text`.

    Raises:
        SettingError: it is no number above 0.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingError(f"BUDGET is {text}, but must be a number of seconds above 0.")
    return seconds


def check_wheels(folder: Path) -> Path:
    """`folder`, if it holds parts, or what they were joined to.

    Raises:
        SettingError: it does not.
    """
    if not folder.is_dir():
        raise SettingError(f"WHEELS is {folder}, which is no folder.")
    if not any(any(folder.glob(pattern)) for pattern in (f"{ARCHIVE}.*", SUMS, "*.whl", WRK)):
        raise SettingError(f"WHEELS is {folder}, which holds neither parts nor wheels.")
    return folder


def make_empty(folder: Path) -> Path:
    """Makes `folder` for the results, or takes it as it is if it is empty.

    Raises:
        SettingError: it holds something, or files cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds_files = any(folder.iterdir())
    except OSError as error:
        raise SettingError(f"OUT is {folder}, which cannot be made or read: {error.strerror}.") from error
    if holds_files:
        raise SettingError(f"OUT is {folder}, which is not empty; a check writes to a folder of its own.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingError(f"OUT is {folder}, where no file can be written.")
    return folder
