"""Tests that cost seconds are marked; `--fast` leaves them out, and all others are held to being cheap.

A test that is not marked and starts a process fails, in every run; one that exports or converts a model, in a fast run.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

COSTLY = ("live", "converts", "slow")
"""Markers of what a fast run leaves out."""
# Python announces under these names what starts a process, whoever calls it: see sys.addaudithook.
PROCESS_EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec")


def is_costly(item: pytest.Item) -> bool:
    """Whether it has one of the markers."""
    return any(item.get_closest_marker(name) for name in COSTLY)


def deselect_costly(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the cheap tests of a collection."""
    config.hook.pytest_deselected(items=[item for item in items if is_costly(item)])
    items[:] = [item for item in items if not is_costly(item)]


class _Watch:
    """An audit hook, which stays as long as the process does; it refuses while `active`."""

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


_watch = _Watch()


@contextmanager
def processes_refused(refused: bool = True) -> Iterator[None]:
    """Fails whatever starts a process, or lets it."""
    _watch.install()
    before, _watch.active = _watch.active, refused
    try:
        yield
    finally:
        _watch.active = before


@contextmanager
def conversions_refused() -> Iterator[None]:
    """Fails whatever exports a program or converts one. Imports torch and OpenVINO."""
    import openvino
    import torch

    with (
        patch.object(torch.export, "export", lambda *_, **__: _fail("torch.export.export", "converts")),
        patch.object(openvino, "convert_model", lambda *_, **__: _fail("openvino.convert_model", "converts")),
    ):
        yield


def _fail(what: str, marker: str) -> NoReturn:
    pytest.fail(f"{what}: the test needs the marker {marker!r}")
