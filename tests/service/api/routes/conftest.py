"""Apps around the engines of one test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient

from model.checkpoints.heads import Heads
from tests.support.app import serve_app
from tests.support.engines import FakeEngine
from tests.support.open_inference import Bright

Start = Callable[..., TestClient]
"""Starts an app around an engine, with heads (by default those of the engine, if it has any) and settings."""


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(engine: FakeEngine, heads: Heads | None = None, **settings: Any) -> TestClient:
            return stack.enter_context(serve_app(engine, heads or getattr(engine, "heads", None), **settings))

        yield start


@pytest.fixture
def engine() -> Bright:
    """The engine of `client`."""
    return Bright()


@pytest.fixture
def client(start: Start, engine: Bright) -> TestClient:
    """The app around `engine` and its head. Modules that serve another engine have a `client` of their own."""
    return start(engine, engine.heads)
