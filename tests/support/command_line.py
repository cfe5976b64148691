"""The commands of `mae`."""

import sys
from pathlib import Path
from typing import Any

import typer

from service.cli.main import app

SCRIPT = str(Path(sys.executable).with_name("mae"))
"""The script `mae` of this environment."""


def all_commands() -> dict[str, Any]:
    """Each command by its words after `mae`; `anomaly fit` is one in a group."""
    root: Any = typer.main.get_command(app)
    return dict(_inside(root, ""))


def _inside(group: Any, before: str) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        words = f"{before} {name}".strip()
        found += _inside(command, words) if hasattr(command, "commands") else [(words, command)]
    return found
