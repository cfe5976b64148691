"""Tables of the results of `mae bench`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from model.benchmark.run import Benchmark
from model.benchmark.timing import Figures
from service.benchmark.results import Limit, ServerFigures, ServiceBenchmark, StageCost, Tail
from service.cli.tables import TABLE_STYLE, add_number_columns

NAME_WIDTH = 22


def engine_description(benchmark: Benchmark) -> RenderableType:
    """A description of the engine, and of the device's peak if that was measured."""
    info = benchmark.engine
    weights = "random weights; the speed does not depend on them" if benchmark.random_weights else info.weights[:12]
    lines = [
        f"{info.model} ({weights})",
        f"{info.backend} {info.precision} on {info.device}, {info.lanes} lanes of {info.threads_per_lane} threads, "
        f"batches of {info.preferred_batch}",
    ]
    if info.parity is not None:
        lines[-1] += f", centred cosine to eager float32 {info.parity.cosine:.6f}"
    if info.fallback:
        lines.append(f"not the preferred backend: {info.fallback}")
    flops_per_s, bytes_per_s = benchmark.peak_flops_per_s, benchmark.peak_bytes_per_s
    if flops_per_s is not None and bytes_per_s is not None:
        work = ", ".join(f"{name}: {flops / 1e9:.2f}" for name, flops in benchmark.flops_per_image.items())
        lines += [
            f"peak measured here: {flops_per_s / 1e12:.3g} TFLOP/s in a large matrix product, "
            f"{bytes_per_s / 1e9:.3g} GB/s in a large copy",
            f"GFLOP per image (torch's counter): {work}",
            "roofline: images/s that this peak allows; share: how much of it was reached",
        ]
    return Text("\n".join(lines))


def engine_rows(figures: Sequence[Figures], with_header: bool) -> RenderableType:
    """Rows of the table of an engine's speed; all parts of the table have the same columns."""
    table = Table(**TABLE_STYLE, show_header=with_header, pad_edge=True)
    names = max((len(figure.engine) for figure in figures), default=0)
    table.add_column("operation", no_wrap=True, width=11)
    for name, width in (("K", 4), ("batch", 5), ("lanes", 5)):
        table.add_column(name, justify="right", width=width)
    table.add_column("engine", no_wrap=True, width=max(NAME_WIDTH, names))
    roofline_columns = ("roofline", "share") if any(figure.floor_images_per_s for figure in figures) else ()
    for name in ("images/s", "p50 ms", "p99 ms", "core-ms", *roofline_columns):
        table.add_column(name, justify="right", width=8)
    for figure in figures:
        cells = [figure.operation, str(figure.visible), str(figure.batch), str(figure.lanes), figure.engine]
        cells += map(three_digits, (figure.images_per_s, figure.p50_ms, figure.p99_ms, figure.core_ms))
        if figure.floor_images_per_s is not None:
            share = figure.images_per_s / figure.floor_images_per_s
            cells += [three_digits(figure.floor_images_per_s), f"{share:.2f}"]
        table.add_row(*cells)
    return table


def left_out_lines(left_out: Mapping[str, str]) -> RenderableType:
    """What was left out, and why."""
    return Text("\n".join(f"{name} left out: {reason}" for name, reason in left_out.items()))


def service_tables(benchmark: ServiceBenchmark) -> Iterator[RenderableType]:
    """Tables of all other parts of the benchmark; the last one shows where the time goes."""
    machine = benchmark.machine
    yield Text(
        f"{machine.processor}, {machine.cores} cores; load average {machine.load_before:.1f} before, "
        f"{machine.load_after:.1f} after\n"
        f"core-ms: CPU time (user and system) in milliseconds per image; other programs hardly change it\n"
        f"servers are sent {benchmark.sample}, {benchmark.sample_kilobytes:.0f} kB each"
    )
    if benchmark.stages:
        yield _stage_table(benchmark.stages)
    for server, title in (
        (benchmark.front, "Front end alone: the real server with an engine that answers at once"),
        (benchmark.service, "Service: mae serve, one image per request"),
    ):
        if server is not None:
            yield _load_table(server, title)
            yield Text("".join(f"left out: {name}: {reason}\n" for name, reason in server.left_out.items()), end="")
    if benchmark.service is not None and (tails := benchmark.service.tails()):
        yield _tail_table(tails)
    if benchmark.limits:
        yield _limit_table(benchmark.limits)
    elif benchmark.without_limit:
        yield Text(f"no limit: {benchmark.without_limit}")


def three_digits(number: float | None) -> str:
    """The number with three significant digits, or with all digits before the point; `-` if there is none."""
    if number is None:
        return "-"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _stage_table(stages: Sequence[StageCost]) -> Table:
    table = Table(title="Stages alone", **TABLE_STYLE)
    table.add_column("stage", no_wrap=True)
    table.add_column("of", no_wrap=True)
    add_number_columns(table, "kB", "threads", "images/s", "ms", "core-ms", "cores busy")
    for cost in stages:
        numbers = (cost.images_per_s, cost.ms, cost.core_ms, cost.cores)
        cells = [cost.stage, cost.what, three_digits(cost.kilobytes), str(cost.threads)]
        table.add_row(*cells, *map(three_digits, numbers))
    return table


def _load_table(server: ServerFigures, title: str) -> Table:
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("route", no_wrap=True)
    table.add_column("load", no_wrap=True)
    add_number_columns(
        table,
        "images/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "images/batch",
        "core-ms",
        "cores busy",
        "core-ms of wrk",
        "failed",
    )
    for figure in server.figures:
        rate = figure.asked_per_s
        sent = f"{figure.connections} connections" if rate is None else f"{three_digits(rate)}/s at random"
        numbers = (
            figure.images_per_s,
            figure.p50_ms,
            figure.p95_ms,
            figure.p99_ms,
            figure.images_per_batch,
            figure.core_ms,
            figure.server_cores,
            figure.load_core_ms,
        )
        table.add_row(figure.route, sent, *map(three_digits, numbers), str(figure.failed))
    return table


def _tail_table(tails: Sequence[Tail]) -> Table:
    table = Table(title="Service: requests at random times over the p50 of one request at a time", **TABLE_STYLE)
    table.add_column("route", no_wrap=True)
    table.add_column("load", no_wrap=True)
    add_number_columns(table, "one at a time, p50 ms", "p50", "p95", "p99")
    for tail in tails:
        load = f"{three_digits(tail.asked_per_s)}/s at random"
        ratios = (f"{ratio:.2f}" for ratio in tail.ratios)
        table.add_row(tail.route, load, three_digits(tail.lone_p50_ms), *ratios)
    return table


def _limit_table(limits: Sequence[Limit]) -> Table:
    table = Table(title="Where the time goes", **TABLE_STYLE)
    table.add_column("core-ms per image", no_wrap=True)
    add_number_columns(table, *(limit.route for limit in limits))
    for index, stage in enumerate(limits[0].shares):
        shares = [limit.shares[index] for limit in limits]
        table.add_row(stage.stage, *(f"{three_digits(share.core_ms)} ({share.share:.0%})" for share in shares))
    table.add_section()
    for name, values in (
        ("sum of the stages", [limit.core_ms for limit in limits]),
        ("the whole service", [limit.measured_core_ms for limit in limits]),
        ("wrk, on the same cores, not in the sum", [limit.load_core_ms for limit in limits]),
    ):
        table.add_row(name, *map(three_digits, values))
    table.add_section()
    cores = limits[0].cores
    for name, values in (
        (f"limit, images/s: {cores} cores / sum", [limit.images_per_s for limit in limits]),
        (f"limit beside wrk: {cores} cores / (sum + wrk)", [limit.beside_load_images_per_s for limit in limits]),
        ("front end alone, images/s", [limit.front_images_per_s for limit in limits]),
        ("measured, images/s", [limit.measured_images_per_s for limit in limits]),
        ("cores that the service kept busy", [limit.measured_cores for limit in limits]),
    ):
        table.add_row(name, *map(three_digits, values))
    table.add_row("measured / limit", *(f"{limit.ratio:.2f}" for limit in limits))
    table.add_row("measured / limit beside wrk", *(f"{limit.ratio_beside_load:.2f}" for limit in limits))
    return table
