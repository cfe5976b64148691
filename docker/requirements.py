"""Prints what pip is to install, read from pyproject.toml alone, so that an image's layer of it outlives code changes.

`requirements.py EXTRA,EXTRA` prints the dependencies and those of the extras; `requirements.py --build` prints what
building the wheel needs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(pyproject: dict[str, Any], extras: list[str]) -> list[str]:
    """The project's dependencies and those of `extras`, of which one may name others (`mae-serve[hub]`).

    Raises:
        SystemExit: there is no such extra.
    """
    project = pyproject["project"]
    known: dict[str, list[str]] = project["optional-dependencies"]
    own = re.compile(rf"{re.escape(project['name'])}\[([^]]+)\]")
    found = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(sorted(known))}")
        for line in known[extra]:
            match = own.fullmatch(line)
            found += requirements(pyproject, match[1].replace(" ", "").split(",")) if match else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = sys.argv[1]
    if wanted == "--build":
        print(*pyproject["build-system"]["requires"], sep="\n")
    else:
        print(*requirements(pyproject, [extra for extra in wanted.split(",") if extra]), sep="\n")
