"""`--fast`: leaves out the tests that are marked as costly, and holds all others to it.

A test that is not marked and starts a process or converts a model all the same fails in such a run.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

COSTLY = ("live", "converts", "slow")
"""Markers of what a fast run leaves out."""
# Python announces what starts a process under these names, whoever calls it: see sys.addaudithook.
PROCESS_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec")
_state = {"installed": False, "watching": False}


def deselect_costly(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the cheap tests of a collection."""
    costly = [item for item in items if any(item.get_closest_marker(name) for name in COSTLY)]
    config.hook.pytest_deselected(items=costly)
    items[:] = [item for item in items if item not in set(costly)]


@contextmanager
def nothing_costly() -> Iterator[None]:
    """Fails whatever starts a process, exports a program or converts one."""
    import openvino
    import torch

    if not _state["installed"]:
        sys.addaudithook(_refuse_processes)  # which stays as long as the process does
    _state["installed"] = _state["watching"] = True
    with (
        patch.object(torch.export, "export", _refuse("torch.export.export")),
        patch.object(openvino, "convert_model", _refuse("openvino.convert_model")),
    ):
        try:
            yield
        finally:
            _state["watching"] = False


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if _state["watching"] and event in PROCESS_EVENTS:
        _fail(f"{event}{arguments[:2]}", "live")


def _refuse(name: str) -> Any:
    return lambda *arguments, **options: _fail(name, "converts")


def _fail(what: str, marker: str) -> NoReturn:
    pytest.fail(f"{what} in a fast run: the test needs the marker {marker!r}")
