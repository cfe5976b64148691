"""Apps for replicas in tests: the service with a fake engine that misbehaves. Each function runs in a replica."""

import os

from fastapi import FastAPI

from service.api.app import create_app
from service.service import LocalService
from service.settings import Settings
from tests.support.fake_server import build


def build_fatal_app() -> FastAPI:
    """The engine is lost where an image is poisoned."""
    return _build_app("fatal")


def build_unbuildable_app() -> FastAPI:
    """The engine cannot be built."""
    return _build_app("unbuildable")


def _build_app(kind: str) -> FastAPI:
    os.environ["FAKE"] = kind
    return create_app(service=LocalService(Settings(max_batch=1), build))
