"""Seconds from the start of `mae serve` with an empty engine cache to the first 200 of /readyz.

    .venv/bin/python -m tests.benchmarks.first_start [--code BEFORE --code .] [--runs 5] [--env MAE_PRECISION=fp32]

Each folder of --code holds a checkout, and they take turns; the packages are those of this environment. For each run a
line has the seconds, the CPU seconds of the server with its child processes until then, and the steps that the server
told, with the seconds at which each began. The medians come last.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks.compare import MAE

STEP = re.compile(r"(making|converting|computing|compiling|comparing|measuring|ready|running on) ?[^\n]*")
POLL_S = 0.02
LIMIT_S = 300.0


def start_once(code: Path, settings: dict[str, str]) -> tuple[float, float, list[str]]:
    """Starts the server of a checkout with an empty cache: seconds, CPU seconds, and the steps of its log."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
        environment |= {"PYTHONPATH": str(code), "XDG_CACHE_HOME": scratch, "MAE_HOST": "127.0.0.1", "MAE_PORT": "0"}
        log = Path(scratch) / "log"
        begin = time.monotonic()
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-P", "-c", MAE, "serve"],
                env=environment | settings,
                stdout=out,
                stderr=out,
                cwd=scratch,
            )
        try:
            seconds, steps = _wait_until_ready(server, log, begin)
            return seconds, _cpu_seconds(server.pid), steps
        finally:
            server.kill()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], log: Path, begin: float) -> tuple[float, list[str]]:
    url, lines, steps = "", 0, []
    while (now := time.monotonic() - begin) < LIMIT_S and server.poll() is None:
        text = log.read_text().splitlines()
        for line in text[lines:]:
            if found := STEP.search(line):
                steps.append(f"{now:5.2f} s  {found[0]}")
            if listening := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                url = listening[1]
        lines = len(text)
        if url:
            try:
                with urllib.request.urlopen(url + "/readyz", timeout=10):
                    return time.monotonic() - begin, steps
            except urllib.error.HTTPError:
                pass
        time.sleep(POLL_S)
    raise SystemExit(f"the server is not ready:\n{log.read_text()}")


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended, such as a conversion."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime, stime, cutime, cstime


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each run, and the medians of each checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, action="append", help="a checkout; may be repeated")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    parser.add_argument("--steps", action="store_true", help="show the steps of every run")
    options = parser.parse_args(arguments)
    checkouts = [path.absolute() for path in options.code or [Path(".")]]
    if missing := [str(path) for path in checkouts if not (path / "service").is_dir()]:
        parser.error(f"no checkout: {', '.join(missing)}")
    settings = dict(pair.split("=", 1) for pair in options.env)
    results: dict[Path, list[tuple[float, float]]] = {code: [] for code in checkouts}
    for run in range(options.runs):
        for code in checkouts:
            seconds, cpu_seconds, steps = start_once(code, settings)
            results[code].append((seconds, cpu_seconds))
            print(f"{code}, run {run + 1}: ready after {seconds:.2f} s, {cpu_seconds:.2f} CPU-s", flush=True)
            if options.steps:
                print(*(f"    {step}" for step in steps), sep="\n", flush=True)
    for code, pairs in results.items():
        print(f"{code}: median {median(s for s, _ in pairs):.2f} s, {median(c for _, c in pairs):.2f} CPU-s")


if __name__ == "__main__":
    main()
