"""Prints the requirements for pip from pyproject.toml alone, so that code changes do not invalidate an image's layer.

`requirements.py EXTRA,EXTRA` prints the dependencies and those of the extras; `requirements.py --build` prints the
requirements for building the wheel.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(pyproject: dict[str, Any], extras: list[str]) -> list[str]:
    """The project's dependencies and those of `extras`; an extra may include others (`mae-serve[hub]`).

    Raises:
        SystemExit: there is no such extra.
    """
    project = pyproject["project"]
    known: dict[str, list[str]] = project["optional-dependencies"]
    own = re.compile(rf"{re.escape(project['name'])}\[([^]]+)\]")
    result = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(sorted(known))}")
        for line in known[extra]:
            match = own.fullmatch(line)
            result += requirements(pyproject, match[1].replace(" ", "").split(",")) if match else [line]
    return list(dict.fromkeys(result))


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    argument = sys.argv[1]
    if argument == "--build":
        print(*pyproject["build-system"]["requires"], sep="\n")
    else:
        print(*requirements(pyproject, [extra for extra in argument.split(",") if extra]), sep="\n")
