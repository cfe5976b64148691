"""Step b: servers with several numbers of workers under load; with stand-ins for the servers and for wrk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gpu_check.context import Context
from gpu_check.service import measure_service

from service.benchmark import load
from service.benchmark.processes import ServerFailed
from service.benchmark.results import LoadFigures
from service.settings import Settings
from tests.docker.gpu_check.conftest import planned, rows


class Host:
    """Servers that answer 100 images per second for each worker and connection, up to 1,000."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Settings] = []
        self.ended: list[int] = []
        self.broken: int | None = None
        self.failed = 0
        monkeypatch.setattr(load, "wrk_is_installed", lambda: True)
        monkeypatch.setattr(load, "send_closed_load", self.send)

    @contextmanager
    def serve(self, settings: Settings) -> Iterator[Any]:
        if settings.http_workers == self.broken:
            raise ServerFailed("the server has ended with 1: no room")
        self.started.append(settings)
        yield settings.http_workers
        self.ended.append(settings.http_workers)

    def send(self, workers: Any, route: load.Route, connections: int, seconds: float) -> LoadFigures:
        assert workers not in self.ended
        rate = min(1000, 100 * max(1, workers) * connections)
        return LoadFigures(
            route=route.name,
            arrivals="closed",
            connections=connections,
            images_per_s=rate,
            p50_ms=3,
            p99_ms=4,
            answered=9,
            failed=self.failed,
            window_s=seconds,
            core_ms=2.5,
            server_cores=7.25,
            load_core_ms=0.95,
        )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_all_servers_are_measured_and_each_route_says_where_it_saturates(host: Host, on_gpu: Context) -> None:
    measure_service(on_gpu, host.serve)
    found = rows(on_gpu)
    assert sorted(found) == sorted(planned(on_gpu))
    assert len(found) == 2 * 4 + 2 + 4
    assert next(iter(found)) == "mae_tiny /embed, 8 workers, 4 connections"
    assert found["mae_tiny /reconstruct, 0 workers, 4 connections"]["per_s"] == 400
    assert found["mae_tiny /embed, 0 workers, 2 connections"]["per_s"] == 200
    for route in ("/embed", "/embed, multipart", "/reconstruct", "/v2, pixels, nothing decoded"):
        row = found[f"{route}: where it saturates"]
        assert (row["per_s"], row["core_ms"]) == (1000, 2.5)
        assert row["note"].startswith("8 workers, 4 connections; the service keeps 7.2 of")
    assert "wrk is the limit" in found["mae_tiny /embed, 8 workers, 4 connections"]["note"]
    assert found["mae_tiny /embed, 0 workers, 2 connections"]["note"] == ""
    assert sorted(host.ended) == [0, 8]


def test_the_servers_run_on_the_gpu(host: Host, on_gpu: Context) -> None:
    measure_service(on_gpu, host.serve)
    assert sorted(settings.http_workers for settings in host.started) == [0, 8]
    for settings in host.started:
        assert (settings.engine.backend, settings.engine.precision, settings.engine.cuda_graphs) == (
            "torch",
            "fp16",
            True,
        )
        assert settings.engine.engine_cache == on_gpu.work / "engines"


def test_a_server_that_does_not_start_fails_and_the_others_are_measured(host: Host, on_gpu: Context) -> None:
    host.broken = 8
    measure_service(on_gpu, host.serve)
    assert on_gpu.report.failures() == ["b service: 8 workers"]
    assert rows(on_gpu)["8 workers"]["note"] == "the server has ended with 1: no room"
    assert rows(on_gpu)["/embed: where it saturates"]["per_s"] == 400


def test_requests_that_fail_fail_the_row(host: Host, on_gpu: Context) -> None:
    host.failed = 3
    measure_service(on_gpu, host.serve)
    assert "3 requests failed" in rows(on_gpu)["mae_tiny /embed, 0 workers, 2 connections"]["note"]
    assert len(on_gpu.report.failures()) == 10


def test_without_wrk_the_step_fails_and_says_so(host: Host, on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "wrk_is_installed", lambda: False)
    measure_service(on_gpu, host.serve)
    assert rows(on_gpu)["all loads"]["note"] == load.WRK_MISSING and not host.started
