"""What was found, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from model.benchmark.run import Benchmark
from service.benchmark.results import Limit, Served, ServiceBenchmark, StageCost

LOOK: Mapping[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left"}


def of_engine(found: Benchmark) -> Iterator[RenderableType]:
    """What serves, and if it was measured how fast it is by itself."""
    info = found.engine
    weights = "random weights, on which speed does not depend" if found.random_weights else info.weights[:12]
    lines = [
        f"{info.model} ({weights})",
        f"{info.backend} {info.precision} on {info.device}, {info.lanes} lanes of {info.threads_per_lane} threads, "
        f"batches of {info.preferred_batch}",
    ]
    if info.parity is not None:
        lines[-1] += f", centred cosine to eager float32 {info.parity.cosine:.6f}"
    if info.fallback:
        lines.append(f"not the preferred backend: {info.fallback}")
    compared = found.peak_flops_per_s is not None and found.peak_bytes_per_s is not None
    if compared:
        work = ", ".join(f"{name}: {flops / 1e9:.2f}" for name, flops in found.flops_per_image.items())
        lines += [
            f"peak seen here: {(found.peak_flops_per_s or 0) / 1e12:.3g} TFLOP/s in a large product, "
            f"{(found.peak_bytes_per_s or 0) / 1e9:.3g} GB/s in a large copy",
            f"GFLOP an image (torch's counter): {work}",
        ]
    lines += [f"{name} left out: {reason}" for name, reason in found.left_out.items()]
    yield Text("\n".join(lines))
    if not found.figures:
        return
    floor = ("floor images/s", "x floor") if compared else ()
    table = _table(
        ("operation",), ("K", "batch", "lanes"), ("engine",), ("images/s", "p50 ms", "p99 ms", "core-ms", *floor)
    )
    for figure in found.figures:
        numbers = [three(figure.images_per_s), three(figure.p50_ms), three(figure.p99_ms), three(figure.core_ms)]
        if figure.floor_images_per_s is not None and figure.times_floor is not None:
            numbers += [three(figure.floor_images_per_s), f"{figure.times_floor:.2f}"]
        place = (figure.operation, str(figure.visible), str(figure.batch), str(figure.lanes))
        table.add_row(*place, figure.engine, *numbers)
    yield table


def of_service(found: ServiceBenchmark) -> Iterator[RenderableType]:
    """All other parts, and in the end where the time goes."""
    machine = found.machine
    yield Text(
        f"{machine.processor}, {machine.cores} cores; load average {machine.load_before:.1f} before, "
        f"{machine.load_after:.1f} after\n"
        f"core-ms: milliseconds of one core (user and system) an image, which neighbours hardly change\n"
        f"servers are sent {found.sample}, {found.sample_kilobytes:.0f} kB each"
    )
    if found.stages:
        yield _stages(found.stages)
    for served, title in (
        (found.front, "Front end alone: the real server, its engine answers at once"),
        (found.service, "Service: mae serve, one image a request"),
    ):
        if served is not None:
            yield _served(served, title)
            yield Text("".join(f"left out: {name}: {why}\n" for name, why in served.left_out.items()), end="")
    if found.limits:
        yield _limits(found.limits)
    elif found.without_limit:
        yield Text(f"no limit: {found.without_limit}")


def three(number: float | None) -> str:
    """Three digits, or all before the point."""
    if number is None:
        return "-"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _stages(stages: Sequence[StageCost]) -> Table:
    table = _table(
        ("stage", "what"), ("kB", "threads", "images/s", "ms", "core-ms", "cores busy"), title="Stages alone"
    )
    for one in stages:
        numbers = (one.images_per_s, one.ms, one.core_ms, one.cores)
        table.add_row(one.stage, one.what, three(one.kilobytes), str(one.threads), *map(three, numbers))
    return table


def _served(served: Served, title: str) -> Table:
    numbers = ("images/s", "p50 ms", "p99 ms", "core-ms", "cores busy", "core-ms of wrk", "failed")
    table = _table(("route", "load"), numbers, title=title)
    for one in served.figures:
        closed = one.asked_per_s is None
        sent = f"{one.connections} connections" if closed else f"{three(one.asked_per_s)}/s at random"
        row = (one.images_per_s, one.p50_ms, one.p99_ms, one.core_ms, one.server_cores, one.load_core_ms)
        table.add_row(one.route, sent, *map(three, row), str(one.failed))
    return table


def _limits(limits: Sequence[Limit]) -> Table:
    table = _table(("core-ms an image",), tuple(limit.route for limit in limits), title="Where the time goes")
    for number, share in enumerate(limits[0].shares):
        row = [limit.shares[number] for limit in limits]
        table.add_row(share.stage, *(f"{three(one.core_ms)} ({one.share:.0%})" for one in row))
    table.add_section()
    for name, values in (
        ("sum of the stages", [limit.core_ms for limit in limits]),
        ("the whole service", [limit.measured_core_ms for limit in limits]),
        ("wrk, on the same cores, not in the sum", [limit.load_core_ms for limit in limits]),
    ):
        table.add_row(name, *map(three, values))
    table.add_section()
    cores = limits[0].cores
    for name, values in (
        (f"limit, images/s: {cores} cores / sum", [limit.images_per_s for limit in limits]),
        (f"limit beside wrk: {cores} cores / (sum + wrk)", [limit.beside_load_images_per_s for limit in limits]),
        ("front end alone, images/s", [limit.front_images_per_s for limit in limits]),
        ("measured, images/s", [limit.measured_images_per_s for limit in limits]),
        ("cores that the service kept busy", [limit.measured_cores for limit in limits]),
    ):
        table.add_row(name, *map(three, values))
    table.add_row("measured / limit", *(f"{limit.ratio:.2f}" for limit in limits))
    table.add_row("measured / limit beside wrk", *(f"{limit.ratio_beside_load:.2f}" for limit in limits))
    return table


def _table(
    left: Sequence[str],
    right: Sequence[str],
    then: Sequence[str] = (),
    last: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    table = Table(title=title, **LOOK)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right")
    for name in then:
        table.add_column(name, no_wrap=True)
    for name in last:
        table.add_column(name, justify="right")
    return table
