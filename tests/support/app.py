"""The app around an engine, in this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient

from model.checkpoints.heads import Heads
from model.engines.base import Engine, ServedModel
from service.api.app import create_app
from service.settings import Settings


@contextmanager
def serve_app(engine: Engine, heads: Heads | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client of the app, once it is ready."""
    app = create_app(Settings(**settings), lambda settings, progress: ServedModel(engine, heads or Heads()))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client
