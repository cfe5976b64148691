"""The tables of `mae bench`, as text."""

import io

from rich.console import Console

from service.benchmark.results import LoadFigures, Machine, ServerFigures, ServiceBenchmark
from service.cli.benchmark_tables import service_tables


def load(connections: int, asked_per_s: float | None, p50: float, p95: float, p99: float) -> LoadFigures:
    return LoadFigures(
        route="/embed",
        arrivals="closed" if asked_per_s is None else "open",
        connections=connections,
        asked_per_s=asked_per_s,
        images_per_s=24,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_batch=1.25,
        answered=100,
        failed=0,
        window_s=4,
        core_ms=33,
        server_cores=1.5,
        load_core_ms=0.5,
    )


def test_requests_at_random_times_are_compared_with_one_at_a_time() -> None:
    service = ServerFigures(figures=(load(1, None, 40, 41, 42), load(240, 24, 50, 84, 110)))
    machine = Machine(processor="a CPU", cores=2, load_before=0, load_after=1)
    benchmark = ServiceBenchmark(machine=machine, sample="JPEG", sample_kilobytes=38, service=service)
    console = Console(file=io.StringIO(), width=120)
    for table in service_tables(benchmark):
        console.print(table)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.startswith("  /embed")]
    assert rows == [
        ["/embed", "1", "connections", "24", "40", "41", "42", "1.25", "33", "1.5", "0.5", "0"],
        ["/embed", "24/s", "at", "random", "24", "50", "84", "110", "1.25", "33", "1.5", "0.5", "0"],
        ["/embed", "24/s", "at", "random", "40", "1.25", "2.10", "2.75"],
    ]
