"""Step b: the whole service with several settings of HTTP_WORKERS, and the load generator on the same host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

from gpu_check.context import Context
from gpu_check.report import Row
from model.config import PRESETS
from model.engines.cpu import available_cpus
from service.benchmark import load
from service.benchmark.processes import ServerFailed, ServerProcess, serve_model
from service.benchmark.results import LoadFigures
from service.benchmark.samples import generate_sample
from service.settings import Settings

STEP = "b service"
MODEL = "mae_tiny"
SATURATION = ": where it saturates"
BUSY = 0.9
"""From this share of a core on, wrk, which has one thread, limits the figure."""
Serve = Callable[[Settings], AbstractContextManager[ServerProcess]]


def measure_service(context: Context, serve: Serve = serve_model) -> None:
    """Sends load to `mae serve` with each number of workers, and says where each route saturates.

    All servers start at the same time, which saves most of the time that starts take; only one is under load at a time.

    Args:
        context: the surroundings.
        serve: starts a server.
    """
    report, numbers = context.report, context.numbers
    sample = generate_sample("JPEG", 500, 334, 8)
    config = PRESETS[MODEL]
    pixels = [route for route in load.open_inference_routes(sample.files, config) if route.name == load.PIXELS]
    routes = [*load.routes_of(sample.files, config.has_decoder), *pixels]
    jobs = [
        (workers, route, connections)
        for connections in numbers.connections
        for workers in numbers.workers
        for route in (routes if connections == numbers.connections[0] else routes[:1])
    ]
    loads = [_name(workers, route.name, count) for workers, route, count in jobs]
    report.plan(STEP, [*loads, *(f"{route.name}{SATURATION}" for route in routes)])
    if not load.wrk_is_installed():
        report.add(Row(STEP, "all loads", note=load.WRK_MISSING, failed=True))
        return
    best: dict[str, tuple[int, LoadFigures]] = {}
    with ThreadPoolExecutor(len(numbers.workers)) as pool, ExitStack() as stack:
        # The threads live as long as the pool: a server is killed when the thread that started it ends.
        starts = {workers: pool.submit(_enter, serve(_settings(workers, context))) for workers in numbers.workers}
        servers = {}
        for workers, start in starts.items():
            try:
                server, leave = start.result()
            except ServerFailed as error:
                report.add(Row(STEP, f"{workers} workers", note=str(error).strip()[-500:], failed=True))
            else:
                servers[workers] = server
                stack.push(leave)
        for position, (workers, route, connections) in enumerate(jobs):
            if workers in servers:
                figure = _send(servers[workers], workers, route, connections, context)
                if figure and (route.name not in best or figure.images_per_s > best[route.name][1].images_per_s):
                    best[route.name] = workers, figure
            if route.name in best and not any(later[1] is route for later in jobs[position + 1 :]):
                report.add(_saturation(*best[route.name]))  # at once: a bound may cut what follows


def _send(
    server: ServerProcess, workers: int, route: load.Route, connections: int, context: Context
) -> LoadFigures | None:
    """Sends one load and adds its row; None if it could not be sent."""
    name = _name(workers, route.name, connections)
    seconds = load.run_seconds(context.numbers.load_seconds, 1, None) or load.MAX_SECONDS
    try:
        figure = load.send_closed_load(server, route, connections, seconds)
    except load.LoadFailed as error:
        context.report.add(Row(STEP, name, note=str(error).strip()[-500:], failed=True))
        return None
    context.report.add(_row(name, figure))
    return figure


def _enter(server: AbstractContextManager[ServerProcess]) -> tuple[ServerProcess, Callable[..., bool | None]]:
    return server.__enter__(), server.__exit__


def _settings(workers: int, context: Context) -> Settings:
    return Settings(model=MODEL, http_workers=workers, **context.engine_settings())


def _name(workers: int, route: str, connections: int) -> str:
    return f"{MODEL} {route}, {workers} workers, {connections} connections"


def _row(name: str, figure: LoadFigures) -> Row:
    notes = []
    if not figure.answered:
        notes.append(f"no request was answered within the {figure.window_s:.1f} s that were measured")
    if figure.failed:
        notes.append(f"{figure.failed} requests failed")
    if _wrk_cores(figure) >= BUSY:
        notes.append(f"wrk is the limit: it kept {_wrk_cores(figure):.2f} of one core busy")
    return Row(
        STEP,
        name,
        per_s=figure.images_per_s,
        p50_ms=figure.p50_ms,
        core_ms=figure.core_ms,
        note="; ".join(notes),
        failed=bool(figure.failed) or not figure.answered,
        details=figure.model_dump(),
    )


def _saturation(workers: int, figure: LoadFigures) -> Row:
    cores = "-" if figure.server_cores is None else f"{figure.server_cores:.1f}"
    return Row(
        STEP,
        f"{figure.route}{SATURATION}",
        per_s=figure.images_per_s,
        p50_ms=figure.p50_ms,
        core_ms=figure.core_ms,
        note=f"{workers} workers, {figure.connections} connections; the service keeps {cores} of {available_cpus()} "
        f"cores busy, wrk {_wrk_cores(figure):.2f}",
    )


def _wrk_cores(figure: LoadFigures) -> float:
    return (figure.load_core_ms or 0) * figure.images_per_s / 1000
