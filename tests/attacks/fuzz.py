"""Fuzzing with atheris (libFuzzer): inputs that find new code are kept and mutated.

make fuzz    # both targets, FUZZ_MINUTES each: 30 minutes
.venv-fuzz/bin/python -m tests.attacks.fuzz decode --minutes 15    # as long as you say

The target `decode` reads bytes as an image and as a mask, as /embed and /reconstruct do. The target `parsers` sends
bytes to the HTTP protocol and the whole app with a fake engine, and reads them as weights, vectors and archives. Only
Python code is instrumented, so mutations are not guided inside the C code of decoders.

Inputs run in a child process with limits. A crash, an input that takes more than `fuzz_child.CPU_S` of CPU time, more
memory than the target's limit, or an exception other than the project's own errors below status 500 is a finding. Its
input is kept in a folder that is printed, and another child goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from tests.attacks.fuzz_record import CURRENT, FINDINGS, Record
from tests.attacks.server import report
from tests.attacks.time_limit import end_after

TARGETS = ("decode", "parsers")
MIN_CHILD_S = 5
"""A child that ends sooner has not begun: it counts as a failed start."""
MAX_FAILED_STARTS = 3
COVERAGE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def fuzz(target: str, seconds: float, folder: Path) -> Counter[str]:
    """Runs children until the time is over."""
    seen: Counter[str] = Counter()
    record = Record.create(folder)
    (folder / FINDINGS).mkdir()
    end, failed_starts = time.monotonic() + seconds, 0
    while (left := int(end - time.monotonic())) > 0 and failed_starts < MAX_FAILED_STARTS:
        started, inputs = time.monotonic(), record.inputs
        code = _run_child(target, left, folder)
        if code == 0:
            break
        if time.monotonic() > end + MIN_CHILD_S:
            seen["child that did not end in time"] += 1
        failed_starts += time.monotonic() - started < MIN_CHILD_S and record.inputs == inputs
        what = "over its CPU time" if code == -signal.SIGPROF else f"crash, exit code {code}"
        seen[what] += 1
        _keep_input(folder, what, record.current)
    seen["inputs"] += record.inputs
    seen["accepted"] += record.accepted
    seen["refused by an error of our own"] += record.refused
    seen["findings"] += record.findings
    seen["kinds of findings"] += len(list((folder / FINDINGS).glob("*.txt")))
    seen["ms of CPU at most"] += record.slowest_us // 1000
    seen["MB at most"] += record.peak_kb // 1000
    if found := COVERAGE.findall((folder / "log").read_text(errors="replace")):
        counts = (max(int(numbers[column]) for numbers in found) for column in range(3))
        seen += Counter(dict(zip(("edges covered", "features", "inputs in the corpus"), counts, strict=True)))
    return seen


def _run_child(target: str, seconds: int, folder: Path) -> int:
    command = [sys.executable, "-m", "tests.attacks.fuzz_child", target, str(folder), str(seconds)]
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            return child.wait(seconds + 60)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            child.kill()
            child.wait()


def _keep_input(folder: Path, what: str, data: bytes) -> None:
    """Keeps what a child died of, and takes it out of the corpus."""
    name = f"{re.sub('[^a-z0-9]+', '-', what.lower())}-{sha256(data).hexdigest()[:12]}"
    (folder / FINDINGS / name).write_bytes(data)
    (folder / FINDINGS / f"{name}.txt").write_text(what)
    for path in (folder / "corpus").iterdir():
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                path.unlink()


EXPECTED = (
    "inputs",
    "accepted",
    "refused by an error of our own",
    "ms of CPU at most",
    "MB at most",
    "edges covered",
    "features",
    "inputs in the corpus",
)


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    if find_spec("atheris") is None:
        parser.error("atheris is not installed here: `make .venv-fuzz/.dev` makes an environment that has it")
    end_after(minutes=10 + arguments.minutes)
    folder = Path(tempfile.mkdtemp(prefix=f"mae-fuzz-{arguments.target}-"))
    print(f"log, corpus and findings are in {folder}; the last input is in {folder / CURRENT}", file=sys.stderr)
    seen = fuzz(arguments.target, 60 * arguments.minutes, folder)
    return report(f"fuzz {arguments.target}", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
