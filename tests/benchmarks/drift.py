"""The figures that DRIFT_SAMPLE measures, for each of several folders: percentiles, means and counts.

    .venv/bin/python -m tests.benchmarks.drift photographs/ other/ --images 200

Each folder stands for the images of one camera. Where the figures of two differ, the service can notice that one takes
the place of the other. Beside the folders, noise and one grey are measured.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.engines.build import build
from model.images.folders import find_images
from service.inference.drift import DriftMonitor
from service.inference.image_decoder import ImageDecoder
from service.metrics import Metrics
from service.settings import load_settings

PERCENTILES = (1, 10, 50, 90, 99)


class Recorder:
    """Takes the place of a histogram, and keeps its values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)


def measure(served: Any, images: Sequence[Any]) -> dict[str, list[float]]:
    """The figures of images, uint8 [N, P]."""
    metrics: Any = Metrics()
    recorders = {"loss": Recorder(), "distance": Recorder()}
    metrics.drift_loss, metrics.drift_distance = recorders.values()
    monitor = DriftMonitor(served.engine, served.heads, metrics)
    for patches in images:
        monitor.offer(patches)
        while sample := monitor.take():
            monitor.measure(0, sample)
            monitor.give_back(sample)
    return {name: recorder.values for name, recorder in recorders.items()}


def main() -> None:
    """Prints a line per folder and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    settings = load_settings(weights=options.weights, precision="fp32")
    served = build(settings.engine, lambda step: None)
    info = served.engine.info
    decoder = ImageDecoder(info.config, info.preprocessing, settings.max_pixels)
    shape = info.config.num_patches, info.config.patch_dim
    generator = np.random.default_rng(0)
    images = {
        "noise": [generator.integers(0, 256, shape).astype(np.uint8) for _ in range(20)],
        "grey": [np.full(shape, 128, np.uint8)] * 20,
    }
    for folder in options.folders:
        paths = sorted(find_images([folder]).images)
        random.Random(0).shuffle(paths)
        images[str(folder)] = [decoder.decode(Path(path).read_bytes(), 0).patches for path in paths[: options.images]]
    print(f"{'':40} {'':8} {'images':>6} {'mean':>7} " + " ".join(f"{percentile:>5} %" for percentile in PERCENTILES))
    for name, patches in images.items():
        for figure, values in measure(served, patches).items():
            levels = " ".join(f"{level:7.3f}" for level in np.percentile(values, PERCENTILES))
            print(f"{name[-40:]:40} {figure:8} {len(values):6} {np.mean(values):7.3f} {levels}")


if __name__ == "__main__":
    main()
