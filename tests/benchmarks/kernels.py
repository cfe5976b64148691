"""Measures what the kernels that OpenVINO compiles for each shape cost: memory, and CPU time where few are kept.

    .venv/bin/python -m tests.benchmarks.kernels --batches 3000 [--kernels 50] [--arenas 1] [--usual]

Batches of random sizes and numbers of visible patches run on all lanes, without a service. Half of them embed and half
reconstruct, and seven of eight have one image, as such requests seldom share a batch. Settings come from the
environment (MAE_…); Linux and glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import random
import re
import threading
import time
from pathlib import Path

import numpy as np

from model.engines.base import Engine
from model.engines.build import build
from model.engines.openvino import engine as openvino_engine
from service.freed_memory import share_one_arena
from service.settings import load_settings


def describe_memory() -> str:
    """The resident memory, and how much of glibc's arenas is used and free."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    library, file = ctypes.CDLL(None), os.memfd_create("malloc_info")
    library.fdopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(library.fdopen(os.dup(file), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    with open(file) as described:
        described.seek(0)
        *_, total = described.read().rpartition("</heap>")
    free = sum(map(int, re.findall(r'type="(?:fast|rest)" count="\d+" size="(\d+)"', total)))
    system = int(re.findall(r'type="current" size="(\d+)"', total)[0])
    return f"{resident / 1e6:.0f} MB resident; arenas: {(system - free) / 1e6:.0f} MB used, {free / 1e6:.0f} MB free"


def run_batches(engine: Engine, count: int, is_usual: bool, seed: int) -> None:
    """Runs `count` batches on all lanes together."""
    numbers, config = itertools.count(), engine.info.config
    patches_per_image = config.num_patches

    def run(lane: int) -> None:
        draw = random.Random(1000 * seed + lane)
        shape = (8, patches_per_image, 3 * config.patch_size**2)
        patches = np.random.default_rng(lane).integers(0, 256, shape, np.uint8)
        while next(numbers) < count:
            if is_usual:
                size, visible = draw.randint(1, 4), draw.choice((patches_per_image // 4, patches_per_image - 1))
            else:
                size, visible = draw.choice((1,) * 7 + (2,)), draw.randrange(1, patches_per_image)
            chosen = [sorted(draw.sample(range(patches_per_image), visible)) for _ in range(size)]
            indices = np.array(chosen, np.int32)
            if draw.random() < 0.5:
                engine.embed(lane, patches[:size, :visible], indices)
            else:
                engine.reconstruct(lane, patches[:size], indices)

    lanes = [threading.Thread(target=run, args=(lane,)) for lane in range(engine.info.lanes)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()


def main() -> None:
    """Prints a line after a tenth, a third, two thirds and all of the batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--kernels", type=int, help="kernels of a kind that are kept; by default as in the service")
    parser.add_argument("--arenas", choices=("1", "many"), default="1", help="of glibc")
    parser.add_argument("--usual", action="store_true", help="only 1 to 4 images, nearly whole or a quarter visible")
    options = parser.parse_args()
    if options.arenas == "1":
        share_one_arena()
    if options.kernels is not None:
        openvino_engine.VIT_FP32_KERNELS = openvino_engine.KERNELS = options.kernels
    engine = build(load_settings().engine, lambda step: None).engine
    print(f"ready: {describe_memory()}", flush=True)
    marks = [0, options.batches // 10, options.batches // 3, 2 * options.batches // 3, options.batches]
    for seed, (start, end) in enumerate(itertools.pairwise(marks)):
        before = time.process_time()
        run_batches(engine, end - start, options.usual, seed)
        milliseconds = 1000 * (time.process_time() - before) / max(1, end - start)
        print(f"{end:6} batches: {describe_memory()}; {milliseconds:.1f} core-ms per batch", flush=True)


if __name__ == "__main__":
    main()
