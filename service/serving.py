"""Starts the service in one process or in several: the only module that knows both."""

from __future__ import annotations

from model.engines.build import build
from service.freed_memory import share_one_arena, start_trimming
from service.lifecycle.engine_loader import BuildEngine
from service.server import serve
from service.service import LocalService
from service.settings import Settings
from service.tracing.configuration import load_tracer


def run(settings: Settings, build_engine: BuildEngine = build) -> int:
    """Serves, with or without HTTP_WORKERS, until the end; returns the exit code.

    Raises:
        InvalidSettings: nobody can listen on HOST and PORT, or a variable OTEL_… is wrong.
    """
    share_one_arena()
    start_trimming()
    if settings.http_workers:
        from service.workers.engine_process import serve_with_workers  # lazily: only Linux has the shared memory

        return serve_with_workers(settings, build_engine)
    from service.api.app import create_app  # lazily: the engine process has no app and need not load FastAPI

    service = LocalService(settings, build_engine, load_tracer())
    return serve(create_app(service=service), settings.host, settings.port)
