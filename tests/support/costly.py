"""Guards for the markers of costly tests: `--fast` leaves those tests out, and all other tests must be cheap.

A test without a marker that starts a process fails in every run. In a fast run, so does a test that exports or converts
a model.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

COSTLY = ("live", "converts", "slow")
"""Markers of the tests that a fast run leaves out."""
# The events that Python raises before any code starts a process: see sys.addaudithook.
PROCESS_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec")


def is_costly(item: pytest.Item) -> bool:
    """Whether a test has one of the markers."""
    return any(item.get_closest_marker(name) for name in COSTLY)


def deselect_costly(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Removes the costly tests from a collection."""
    config.hook.pytest_deselected(items=[item for item in items if is_costly(item)])
    items[:] = [item for item in items if not is_costly(item)]


class _ProcessGuard:
    """An audit hook, which stays as long as the process does; while `active`, it fails a test that starts a process."""

    def __init__(self) -> None:
        self.active = False
        self._installed = False

    def install(self) -> None:
        if not self._installed:
            sys.addaudithook(self._audit)
            self._installed = True

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in PROCESS_EVENTS:
            _fail(f"{event}{arguments[:2]}", "live")


_process_guard = _ProcessGuard()


@contextmanager
def refuse_processes(refused: bool = True) -> Iterator[None]:
    """Fails a test that starts a process inside the context; with `refused` False, allows it there."""
    _process_guard.install()
    before, _process_guard.active = _process_guard.active, refused
    try:
        yield
    finally:
        _process_guard.active = before


@contextmanager
def refuse_conversions() -> Iterator[None]:
    """Fails a test that exports or converts a program inside the context. Imports torch and OpenVINO."""
    import openvino
    import torch

    with (
        patch.object(torch.export, "export", lambda *_, **__: _fail("torch.export.export", "converts")),
        patch.object(openvino, "convert_model", lambda *_, **__: _fail("openvino.convert_model", "converts")),
    ):
        yield


def _fail(call: str, marker: str) -> NoReturn:
    pytest.fail(f"{call}: the test needs the marker {marker!r}")
