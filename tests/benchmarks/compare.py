"""Two revisions side by side: both serve at once, and the same load goes to one and the other in turns.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/compare.py main . --route /reconstruct --front
    PYTHONPATH=. .venv/bin/python tests/benchmarks/compare.py . . --front --setting-b HTTP_WORKERS=2

A revision is anything that git knows, or `.` for this checkout with what is not committed. Whatever drifts meanwhile
meets both; core-ms, the processor time an image, hardly minds neighbours. With --front an engine that answers at once
is behind the servers. The load and the engine that is none are always this checkout's, so revisions without `mae
bench` can be compared too, and settings come from the environment (MAE_…), but for those that one of both is given.
Needs wrk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from service.benchmark import load
from service.benchmark.processes import ServerProcess, serving, serving_nothing
from service.benchmark.results import LoadFigures
from service.benchmark.samples import made
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
# Revisions before 0.2.0 have their commands elsewhere.
INFO = """
try:
    from service.cli.main import main
except ModuleNotFoundError:
    from service.cli import main
main()
"""
FIGURES = ("images_per_s", "p50_ms", "p99_ms", "core_ms")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the files of `revision`."""
    if revision == ".":
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="mae-compare-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


@contextmanager
def server_of(tree: Path, front: bool, given: dict[str, str]) -> Iterator[ServerProcess]:
    """The server that the code in `tree` makes, with settings of its own."""
    settings = load_settings(**given)
    if not front:
        with serving(settings, str(tree)) as server:
            yield server
        return
    command = [sys.executable, "-P", "-c", INFO, "info", "--json"]
    said = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, stdout=subprocess.PIPE)
    with tempfile.TemporaryDirectory(prefix="mae-compare-") as folder:
        info = Path(folder) / "info.json"
        info.write_text(json.dumps(json.loads(said.stdout)["engine"]))
        with serving_nothing(settings, info, str(tree)) as server:
            yield server


def setting(text: str) -> tuple[str, str]:
    """NAME=VALUE, in two."""
    name, equals, value = text.partition("=")
    if not equals or name.lower() not in Settings.model_fields:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE of a setting")
    return name.lower(), value


def main() -> None:
    """Prints the medians of both, and the median of the ratios within each turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    routes = {route.name: route for route in load.routes_of(made("JPEG", 500, 334, 8).files, True)}
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--route", choices=routes, default="/embed")
    parser.add_argument("--front", action="store_true", help="without an engine")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of one run, of which the last three quarters count")
    parser.add_argument("--setting-a", type=setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--setting-b", type=setting, action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    if not load.wrk_is_there():
        sys.exit(load.MISSING)
    if not (1 <= given.rounds <= 100 and 1 <= given.seconds <= load.MOST_SECONDS):
        sys.exit(f"--rounds is 1 to 100, --seconds 1 to {load.MOST_SECONDS:.0f}")
    revisions = (given.a, given.b)
    found: tuple[list[LoadFigures], list[LoadFigures]] = ([], [])
    with ExitStack() as stack:
        trees = [stack.enter_context(checked_out(revision)) for revision in revisions]
        own = (dict(given.setting_a), dict(given.setting_b))
        servers = [stack.enter_context(server_of(*one)) for one in zip(trees, (given.front,) * 2, own, strict=True)]
        print(f"at most {2 * given.rounds * given.seconds + 2 * given.seconds} s of load", file=sys.stderr)
        for server in servers:  # what is set up once is not compared
            load.closed(server, routes[given.route], given.connections, given.seconds)
        for turn in range(given.rounds):
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                figures = load.closed(servers[which], routes[given.route], given.connections, given.seconds)
                if figures.failed or not figures.answered:
                    sys.exit(f"{revisions[which]}: {figures.failed} requests failed, {figures.answered} were answered")
                found[which].append(figures)
    print(f"{given.route}, {given.connections} connections, {given.rounds} rounds of {given.seconds} s")
    print(f"{'':14}{given.a[:16]:>18}{given.b[:16]:>18}{'b / a':>9}{'lowest':>9}{'highest':>9}")
    for name in FIGURES:
        a, b = ([getattr(figures, name) for figures in side] for side in found)
        if None in (*a, *b):
            continue
        ratios = [after / before for before, after in zip(a, b, strict=True)]
        spread = f"{median(ratios):9.3f}{min(ratios):9.3f}{max(ratios):9.3f}"
        print(f"{name:14}{median(a):18.2f}{median(b):18.2f}{spread}")


if __name__ == "__main__":
    main()
