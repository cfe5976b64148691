"""Measures what feeding a fast device costs the host per image: the steps of decoding, and each process under load.

    .venv/bin/python -m tests.benchmarks.feeding --workers 0,1,2 --turns 3

The first table has the CPU time of one thread for each step from the file to the patches. The second has the CPU time
of each process of the real server around an engine that answers at once (service/benchmark/null_engine.py), per image:
the process that owns the engine, and all HTTP workers together. One process is the ceiling of a host with many cores,
so its figure is also given as images/s of one busy core. Needs wrk; Linux only. Settings come from the environment.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from model.config import PRESETS, Preprocessing
from model.images.open_image import open_image
from model.images.preprocess import load_upright, patches_of, patchify, resize_and_crop
from service.benchmark import load
from service.benchmark.processes import MAE_SERVE, environment_of, serve_null_engine
from service.benchmark.samples import Sample, standard_samples
from service.settings import load_settings

REPEATS = 40
CONNECTIONS = 32


def core_ms(step: Callable[[], object], turns: int) -> float:
    """CPU time of a step in milliseconds: the median of `turns` means over `REPEATS` calls."""
    means = []
    for _ in range(turns):
        start = time.process_time()
        for _ in range(REPEATS):
            step()
        means.append((time.process_time() - start) / REPEATS * 1000)
    return median(means)


def decoding_steps(file: bytes, turns: int) -> dict[str, float]:
    """CPU milliseconds of each step from a JPEG file to the patches of the packaged model's square."""
    config, preprocessing = PRESETS["mae_tiny"], Preprocessing()
    least_side = preprocessing.resized_short_side(config.image_size)

    def read_header() -> None:
        open_image(file)

    def decode_entropy() -> None:
        image = Image.open(io.BytesIO(file))
        image.draft("L", (1, 1))  # an eighth of the size, without colour: nearly all that is left is the Huffman code
        image.load()

    def decode() -> object:
        return load_upright(open_image(file), least_side)

    def all_steps() -> None:
        patches_of(open_image(file), config, preprocessing)

    pixels = load_upright(open_image(file), least_side)
    square = np.asarray(resize_and_crop(pixels, config, preprocessing))
    return {
        "header": core_ms(read_header, turns),
        "decode": core_ms(decode, turns),
        "of it Huffman": core_ms(decode_entropy, turns),
        "resize": core_ms(lambda: resize_and_crop(pixels, config, preprocessing), turns),
        "patches": core_ms(lambda: patchify(square, config.patch_size), turns),
        "all": core_ms(all_steps, turns),
    }


def processes_under_load(sample: Sample, workers: int, seconds: float, info: Path) -> tuple[float, float, float]:
    """Images/s, and the CPU milliseconds per image of the engine's process and of all HTTP workers together."""
    route = load.routes_of(sample.files, has_decoder=False)[0]
    with serve_null_engine(load_settings(http_workers=workers), info) as server:
        load.send_closed_load(server, route, CONNECTIONS, 1.0)
        own_before, all_before = own_core_seconds(server.pid), server.core_seconds()
        figures = load.send_closed_load(server, route, CONNECTIONS, seconds)
        own_after, all_after = own_core_seconds(server.pid), server.core_seconds()
        assert all_before is not None and all_after is not None
        # The CPU times span the whole run, the count of answers only its window: the rate joins both.
        images = figures.images_per_s * seconds
        own, whole = own_after - own_before, all_after - all_before
        return figures.images_per_s, 1000 * own / images, 1000 * (whole - own) / images


def describe_engine() -> str:
    """The engine that these settings serve, an `EngineInfo` in JSON."""
    command = [*MAE_SERVE[:-1], "info", "--json"]
    output = subprocess.run(command, env=environment_of(load_settings()), check=True, stdout=subprocess.PIPE).stdout
    return json.dumps(json.loads(output)["engine"])


def own_core_seconds(pid: int) -> float:
    """CPU time in seconds of process `pid` without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="0,1,2", help="values of HTTP_WORKERS, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of load per value and turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    samples = standard_samples()[:3]
    print("CPU milliseconds per image of one thread")
    for sample in samples:
        steps = decoding_steps(sample.files[0], options.turns)
        print(f"{sample.name:18}", *(f"{name} {value:.2f} " for name, value in steps.items()), flush=True)
    print(f"\nCPU milliseconds per image under load ({samples[0].name}, {CONNECTIONS} connections)")
    with tempfile.TemporaryDirectory(prefix="mae-feeding-") as folder:
        info = Path(folder) / "info.json"
        info.write_text(describe_engine())
        for _ in range(options.turns):
            for workers in map(int, options.workers.split(",")):
                rate, own, others = processes_under_load(samples[0], workers, options.seconds, info)
                print(
                    f"HTTP_WORKERS={workers}  {rate:.0f} images/s  engine's process {own:.2f} "
                    f"(one core: {1000 / own:.0f} images/s)  workers {others:.2f}  together {own + others:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
