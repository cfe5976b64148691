"""The process in which the inputs of the fuzzing run: `python -m tests.attacks.fuzz_child TARGET FOLDER SECONDS`.

`tests.attacks.fuzz` starts it, and starts another one when it dies.
"""

from __future__ import annotations

import importlib
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import atheris

from tests.attacks.fuzz_record import FINDINGS, Record
from tests.attacks.processes import own_virtual_bytes

CPU_S = 10.0
"""CPU time of one input, of all threads."""
INSTRUMENTED = ["model", "service", "PIL", "multipart", "uvicorn.protocols.http", "tarfile", "zipfile", "numpy.lib"]
OWN = ("/model/", "/service/")


class Target(Protocol):
    """What is fuzzed."""

    memory_mb: int
    """What an input may take beside what the process had before."""
    max_length: int
    """Of an input."""

    def seeds(self) -> dict[str, bytes]:
        """Inputs to begin with."""

    def read(self, data: bytes) -> bool:
        """Reads an input; returns whether it was accepted."""

    def is_expected(self, error: BaseException) -> bool:
        """Whether an error is one of the project's own, for which the client is to blame."""

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Another input that is like `data`."""


class Runner:
    """Runs inputs one by one, and notes what came of them."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder / FINDINGS
        self._record = Record(folder)
        self._limit_kb = peak_memory_kb() + 1000 * target.memory_mb

    def __call__(self, data: bytes) -> None:
        record = self._record
        record.begin(data)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF ends the process, also within C code
        start = time.process_time_ns()
        try:
            accepted = self._target.read(data)
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            if self._target.is_expected(error):
                record.add(refused=1)
            else:
                self._keep(data, name_of(error), "".join(traceback.format_exception(error)))
        else:
            record.add(accepted=accepted, refused=not accepted)
        spent_us = (time.process_time_ns() - start) // 1000
        signal.setitimer(signal.ITIMER_PROF, 0)
        if spent_us > record.slowest_us:
            (self._folder.parent / "slowest").write_bytes(data)
        peak = peak_memory_kb()
        record.raise_to(slowest_us=spent_us, peak_kb=peak)
        if peak > self._limit_kb:
            self._keep(data, f"memory-{peak // 100_000}", f"the process has taken {peak} kB of memory")
            self._limit_kb = peak + 50_000

    def _keep(self, data: bytes, name: str, text: str) -> None:
        """Keeps the shortest input of each kind."""
        self._record.add(findings=1)
        path = self._folder / name
        if not path.exists() or len(data) < path.stat().st_size:
            path.write_bytes(data)
            path.with_name(f"{name}.txt").write_text(text)


def name_of(error: BaseException) -> str:
    """The kind of a finding: the exception that was the first, and where in our code it came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    own = [frame for frame in frames if any(part in frame.filename for part in OWN)]
    where = f"{Path(own[-1].filename).stem}-{own[-1].lineno}" if own else str(error)[:20]
    return re.sub(r"[^\w-]+", "_", f"{type(error).__name__}-{where}")


def peak_memory_kb() -> int:
    """The most memory that this process has occupied."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    name, folder, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with atheris.instrument_imports(include=INSTRUMENTED):
        target: Any = importlib.import_module(f"tests.attacks.fuzz_{name}").make_target(folder)
    corpus = folder / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        for seed, data in target.seeds().items():
            (corpus / seed).write_bytes(data)
    run: Callable[[bytes], None] = Runner(target, folder)
    for path in sorted(corpus.iterdir()):
        run(path.read_bytes())  # what is loaded on first use counts for no input
    limit = own_virtual_bytes() + 2_000_000 * target.memory_mb
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * seconds + 60, 2 * seconds + 60))
    options = [f"-max_len={target.max_length}", f"-max_total_time={seconds}", "-rss_limit_mb=0", "-timeout=600"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *options, f"-artifact_prefix={folder}/"], run, custom_mutator=target.mutate
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
