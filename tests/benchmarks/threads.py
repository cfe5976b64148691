"""Milliseconds of one image over the number of threads of a lane, by OpenVINO: what a joined lane can gain.

    .venv/bin/python -m tests.benchmarks.threads [--precision fp32] [--model mae_base] [--turns 15]

A lane of 1, 2, 4, … threads, up to all CPUs, runs one image in each of the usual shapes. The lanes take turns, and no
two of them run at once. Each figure is the median of the turns. A preset without packaged weights gets random ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from model.benchmark.timing import powers_of_two
from model.benchmark.weights import write_random_weights
from model.checkpoints.locate import PACKAGED
from model.engines.build import build
from model.engines.cpu import available_cpus, cpu_name
from model.engines.openvino.batch_curves import shapes_of
from model.engines.openvino.curve_measurement import FixedImages
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.settings import EngineSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each shape and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--model", default="mae_tiny")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        packaged = PACKAGED / f"{options.model}.safetensors"
        weights = packaged if packaged.is_file() else write_random_weights(options.model, Path(scratch))
        settings = EngineSettings(
            weights=str(weights), backend="openvino", precision=options.precision, lanes=1, engine_cache=Path(scratch)
        )
        info = build(settings).info
        folder = Path(scratch) / str(info.entry)
        lanes = {
            threads: FixedImages(OpenVINOEngine(folder, info.model_copy(update={"threads_per_lane": threads})))
            for threads in powers_of_two(available_cpus())
        }
        print(f"{info.model_id} in {info.computes}, {cpu_name()}, median of {options.turns} turns")
        for lane in lanes.values():
            lane.draw()
        for shape in shapes_of(info.config):
            seconds: dict[int, list[float]] = {threads: [] for threads in lanes}
            for turn in range(options.turns + 1):
                for threads in list(lanes)[:: -1 if turn % 2 else 1]:
                    seconds[threads].append(lanes[threads].run(0, shape, np.zeros(1, dtype=np.int64))[0])
            one = median(seconds[1][1:])  # without the first turn, which compiles kernels
            for threads in lanes:
                taken = median(seconds[threads][1:])
                print(
                    f"{shape:20} {threads:3} threads: {1000 * taken:8.2f} ms, {one / taken:5.2f} times as fast as one"
                )


if __name__ == "__main__":
    main()
