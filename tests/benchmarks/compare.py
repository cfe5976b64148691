"""Compares two revisions: both servers run, and the same load goes to one and the other in turns.

    .venv/bin/python -m tests.benchmarks.compare main . --route /reconstruct --front
    .venv/bin/python -m tests.benchmarks.compare . . --front --setting-b HTTP_WORKERS=2
    .venv/bin/python -m tests.benchmarks.compare . . --front --route-b "/v2, binary image"

A revision is anything that git knows, or `.` for this checkout with its uncommitted changes. Both servers meet the same
drift of the machine, since they take turns. core_ms is the server's CPU time in milliseconds per image: it hardly
depends on what else the machine does. With --front, each revision serves its own engine that answers at once
(service/benchmark/null_engine.py), so that only the front end is measured. The load always comes from this checkout.
Settings come from the environment (MAE_…); --setting-a and --setting-b add to them for one server. Needs wrk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from model.config import PRESETS
from service.benchmark import load
from service.benchmark.processes import ServerProcess, environment_of, serve_model, serve_null_engine
from service.benchmark.results import LoadFigures
from service.benchmark.samples import generate_sample
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
NULL_ENGINE = Path("service/benchmark/null_engine.py")
# `mae` of any revision: before version 0.2.0 the command line was the module service/cli.py.
MAE = """
try:
    from service.cli.main import main
except ModuleNotFoundError:
    from service.cli import main
main()
"""
METRICS = ("images_per_s", "p50_ms", "p99_ms", "core_ms")


@contextmanager
def check_out(revision: str) -> Iterator[Path]:
    """A folder with the files of `revision`, removed afterwards."""
    if revision == ".":
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="mae-compare-") as folder:
        checkout = Path(folder) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", checkout, revision], cwd=ROOT, check=True)
        try:
            yield checkout
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", checkout], cwd=ROOT, check=True)


@contextmanager
def run_revision(checkout: Path, front: bool, options: dict[str, str]) -> Iterator[ServerProcess]:
    """The server of the code in `checkout`, with settings of its own; with `front`, around its null engine."""
    settings = load_settings(**options)
    if not front:
        with serve_model(settings, _mae("serve"), checkout) as server:
            yield server
        return
    environment = {**environment_of(settings), "PYTHONPATH": str(checkout)}
    info = subprocess.run(_mae("info", "--json"), env=environment, check=True, stdout=subprocess.PIPE)
    with tempfile.TemporaryDirectory(prefix="mae-compare-") as folder:
        file = Path(folder) / "info.json"
        file.write_text(json.dumps(json.loads(info.stdout)["engine"]))
        with serve_null_engine(settings, file, checkout / NULL_ENGINE, checkout) as server:
            yield server


def _mae(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-P", "-c", MAE, *arguments)


def measure_in_turns(
    servers: Sequence[ServerProcess],
    revisions: Sequence[str],
    routes: Sequence[load.Route],
    options: argparse.Namespace,
) -> tuple[list[LoadFigures], list[LoadFigures]]:
    """The figures of both servers, one pair for each round; the order within a round alternates.

    Raises:
        SystemExit: a request failed.
    """
    figures: tuple[list[LoadFigures], list[LoadFigures]] = ([], [])
    for server, route in zip(servers, routes, strict=True):  # warms up: what is set up once is not compared
        load.send_closed_load(server, route, options.connections, options.seconds)
    for number in range(options.rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            result = load.send_closed_load(servers[side], routes[side], options.connections, options.seconds)
            if result.failed or not result.answered:
                sys.exit(f"{revisions[side]}: {result.failed} requests failed, {result.answered} were answered")
            figures[side].append(result)
    return figures


def print_table(
    figures: tuple[list[LoadFigures], list[LoadFigures]], revisions: Sequence[str], options: argparse.Namespace
) -> None:
    """Prints both medians of each metric; then the median, lowest and highest of the ratios within each round."""
    kind = "front end alone" if options.front else "end to end"
    name = options.route if options.route_b is None else f"{options.route} (a) and {options.route_b} (b)"
    print(f"{name}, {kind}, {options.connections} connections, {options.rounds} rounds of {options.seconds} s")
    print(f"{'':14}{revisions[0][:16]:>18}{revisions[1][:16]:>18}{'b / a':>9}{'lowest':>9}{'highest':>9}")
    for metric in METRICS:
        a, b = ([getattr(result, metric) for result in side] for side in figures)
        if None in (*a, *b):
            continue
        ratios = [second / first for first, second in zip(a, b, strict=True)]
        spread = f"{median(ratios):9.3f}{min(ratios):9.3f}{max(ratios):9.3f}"
        print(f"{metric:14}{median(a):18.3f}{median(b):18.3f}{spread}")


def setting(text: str) -> tuple[str, str]:
    """Splits NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or name.lower() not in Settings.model_fields:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE of a setting")
    return name.lower(), value


def main() -> None:
    """Measures two revisions in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = generate_sample("JPEG", 500, 334, 8).files
    every = [*load.routes_of(files, True), *load.open_inference_routes(files, PRESETS["mae_tiny"])]
    routes = {route.name: route for route in every}
    parser.add_argument("a", help="the revision to compare with")
    parser.add_argument("b", help="the revision to measure")
    parser.add_argument("--route", choices=routes, default="/embed")
    parser.add_argument("--route-b", choices=routes, help="another route for the second server")
    parser.add_argument("--front", action="store_true", help="the front end alone, without an engine")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs, one of each revision")
    parser.add_argument("--seconds", type=int, default=4, help="of one run; the last three quarters are measured")
    parser.add_argument("--setting-a", type=setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--setting-b", type=setting, action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if not load.wrk_is_installed():
        sys.exit(load.WRK_MISSING)
    if not (1 <= options.rounds <= 100 and 1 <= options.seconds <= load.MAX_SECONDS):
        sys.exit(f"--rounds is 1 to 100, --seconds 1 to {load.MAX_SECONDS:.0f}")
    revisions = (options.a, options.b)
    with ExitStack() as stack:
        checkouts = [stack.enter_context(check_out(revision)) for revision in revisions]
        settings = (dict(options.setting_a), dict(options.setting_b))
        servers = [
            stack.enter_context(run_revision(checkout, options.front, own))
            for checkout, own in zip(checkouts, settings, strict=True)
        ]
        print(f"at most {2 * (options.rounds + 1) * options.seconds} s of load", file=sys.stderr)
        figures = measure_in_turns(
            servers, revisions, (routes[options.route], routes[options.route_b or options.route]), options
        )
    print_table(figures, revisions, options)


if __name__ == "__main__":
    main()
