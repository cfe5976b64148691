"""Every beginning of small files of every format, and each with one byte inverted.

.venv/bin/python -m tests.attacks.cuts    # 2 minutes

A file that is cut may be answered only if it lacks nothing of its picture: its patches must be those of the whole file.
Each file is read in a process of its own with limits of CPU time and memory; one that dies of an input is reported, and
the inputs behind it are left out.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np

from model.config import PRESETS, Preprocessing
from service.errors import ServiceError
from service.inference.image_decoder import ImageDecoder
from tests.attacks.processes import own_virtual_bytes
from tests.attacks.server import report
from tests.attacks.time_limit import end_after
from tests.support.image_seeds import image_seeds

CPU_S, MEMORY_BYTES = 300, 500_000_000
MAX_PIXELS = 4_000_000


def cuts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every beginning of a file, the whole file last."""
    for length in range(len(data) + 1):
        yield "cut", data[:length]


def damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The file with each of its bytes inverted."""
    for place in range(len(data)):
        yield "inverted", data[:place] + bytes((data[place] ^ 0xFF,)) + data[place + 1 :]


def read_all(data: bytes, found: Connection) -> None:
    """Sends what each input gives: a kind and a status, or the exception."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes a line for each damage
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    limit = own_virtual_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    decoder = ImageDecoder(PRESETS["mae_tiny"], Preprocessing(), MAX_PIXELS)
    whole = decoder.decode(data, 0).patches
    for kind, changed in (*cuts(data), *damages(data)):
        try:
            patches = decoder.decode(changed, 0).patches
        except ServiceError as error:
            found.send(f"{kind}: {error.status}")
        except Exception as error:
            found.send(f"{kind}: {type(error).__name__}")
        else:
            is_other = kind == "cut" and not np.array_equal(patches, whole)
            found.send(f"{kind}: 200" + (" with other pixels" if is_other else ""))
    found.send(None)


def attack(name: str, data: bytes, seen: Counter[str]) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=read_all, args=(data, sender))
    process.start()
    sender.close()
    counts: Counter[str] = Counter()
    try:
        while (answer := receiver.recv()) is not None:
            counts[answer] += 1
    except EOFError:
        process.join()
        counts[f"died of {name}, input {counts.total()}, exit code {process.exitcode}"] += 1
    process.join()
    print(f"{name}: {dict(counts)}", file=sys.stderr)
    seen += counts


# An AVIF or a HEIC whose type is cut is told to be another kind of file of the same family.
EXPECTED = {"cut: 200", "cut: 400", "cut: 415", *(f"inverted: {status}" for status in (200, 400, 413, 415))}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=15)
    seen: Counter[str] = Counter()
    for name, data in image_seeds().items():
        attack(name, data, seen)
    return report("cuts", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
