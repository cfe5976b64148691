"""What it costs that clients choose how much is masked: random mask ratios beside one ratio, through the real batcher.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/ratios.py --clients 128

Behind the batcher is an engine that sleeps 20 ms + 0.1 ms an image, as a GPU would with a small model: what counts is
how full the batches are, and whether images with different numbers of visible patches share one. Each client sends its
next image as soon as it has an answer; the cases take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from model.arrays import Bytes, Floats, Indices
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics

PATCHES, PATCH, WIDTH = 196, 768, 192


class SleepingEngine:
    """Takes `base_s` a batch and `image_s` an image, and counts its batches."""

    def __init__(self, lanes: int, batch: int, mixes: bool, base_s: float = 0.020, image_s: float = 0.0001) -> None:
        config = SimpleNamespace(num_patches=PATCHES)
        self.info: Any = SimpleNamespace(config=config, mixes=mixes, lanes=lanes, preferred_batch=batch)
        self.batches = 0
        self._base_s, self._image_s = base_s, image_s

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        time.sleep(self._base_s + self._image_s * len(patches))
        self.batches += 1
        return np.ones((len(patches), 2, WIDTH), np.float32)


async def rate(ratios: str, mixes: bool, clients: int, lanes: int, batch: int, seconds: float) -> tuple[float, float]:
    """Images a second, and images a batch."""
    engine = SleepingEngine(lanes, batch, mixes)
    batcher = BatchScheduler(engine, Metrics(), queue_images=2 * clients)  # type: ignore[arg-type]
    batcher.start()
    draw = np.random.default_rng(0)
    patches = np.zeros((PATCHES, PATCH), np.uint8)
    answered, end = 0, time.monotonic() + seconds

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < end:
            kept = 0.25 if ratios == "one" else 1 - draw.random()
            visible = max(1, round(PATCHES * kept))
            with batcher.admit("embed", 1, float("inf")) as ticket:
                ticket.put(0, patches[:visible], np.arange(visible, dtype=np.int32))
                await ticket.rows()
            answered += 1

    start = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    taken = time.monotonic() - start
    batcher.stop()
    return answered / taken, answered / engine.batches


def main() -> None:
    """Prints medians of five turns each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    cases = {"one ratio": ("one", False), "random": ("random", False), "random, mixed batches": ("random", True)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(5):
        for name in list(cases) if turn % 2 == 0 else reversed(cases):
            shape = (given.clients, given.lanes, given.batch, given.seconds)
            found[name].append(asyncio.run(rate(*cases[name], *shape)))
    for name, figures in found.items():
        images, full = (median(figure[place] for figure in figures) for place in (0, 1))
        ratio = median(a[0] / b[0] for a, b in zip(figures, found["one ratio"], strict=True))
        print(f"{name:22} {images:8.0f} images/s, {full:5.1f} images a batch, {ratio:.2f} of one ratio")


if __name__ == "__main__":
    main()
