"""Measures what it costs that clients choose the mask ratio: random ratios beside one ratio, with the real scheduler.

    .venv/bin/python -m tests.benchmarks.ratios --clients 128

The scheduler feeds an engine that sleeps 20 ms per batch and 0.1 ms per image, as a GPU needs for a small model. So the
figures depend on how full the batches are, and on whether images with different numbers of visible patches share one.
Each client sends its next image as soon as it has an answer; the cases take turns.
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
from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE, LocalBudget
from service.inference.pending_results import PendingResults
from service.metrics import Metrics

NUM_PATCHES, PATCH_DIM, EMBED_DIM = 196, 768, 192


class SleepingEngine:
    """Sleeps `base_s` per batch and `image_s` per image, and counts its batches."""

    def __init__(self, lanes: int, batch: int, mixes: bool, base_s: float = 0.020, image_s: float = 0.0001) -> None:
        config = SimpleNamespace(num_patches=NUM_PATCHES)
        self.info: Any = SimpleNamespace(config=config, mixes=mixes, lanes=lanes, preferred_batch=batch)
        self.batches = 0
        self._base_s, self._image_s = base_s, image_s

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        time.sleep(self._base_s + self._image_s * len(patches))
        self.batches += 1
        return np.ones((len(patches), 2, EMBED_DIM), np.float32)


async def measure_rate(
    ratios: str, mixes: bool, clients: int, lanes: int, batch: int, seconds: float
) -> tuple[float, float]:
    """Images per second, and images per batch."""
    engine = SleepingEngine(lanes, batch, mixes)
    scheduler = BatchScheduler(engine, Metrics(), LocalBudget(2 * clients * IMAGE))  # type: ignore[arg-type]
    scheduler.start()
    generator = np.random.default_rng(0)
    patches = np.zeros((NUM_PATCHES, PATCH_DIM), np.uint8)
    answered, end = 0, time.monotonic() + seconds

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < end:
            kept = 0.25 if ratios == "one" else 1 - generator.random()
            visible = max(1, round(NUM_PATCHES * kept))
            pending = PendingResults(1)
            request = scheduler.admit("embed", 1, float("inf"), pending)
            scheduler.put(request, 0, patches[:visible], np.arange(visible, dtype=np.int32))
            await pending.wait()
            scheduler.release(request)
            answered += 1

    start = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    elapsed = time.monotonic() - start
    scheduler.stop()
    return answered / elapsed, answered / engine.batches


def main() -> None:
    """Prints the medians of five turns for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    cases = {"one ratio": ("one", False), "random": ("random", False), "random, padded batches": ("random", True)}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(5):
        for name in list(cases) if turn % 2 == 0 else reversed(cases):
            shape = (options.clients, options.lanes, options.batch, options.seconds)
            results[name].append(asyncio.run(measure_rate(*cases[name], *shape)))
    for name, figures in results.items():
        images_per_s, batch_size = (median(values) for values in zip(*figures, strict=True))
        ratio = median(a[0] / b[0] for a, b in zip(figures, results["one ratio"], strict=True))
        print(f"{name:22} {images_per_s:8.0f} images/s, {batch_size:5.1f} images per batch, {ratio:.2f} of one ratio")


if __name__ == "__main__":
    main()
