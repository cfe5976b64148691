"""What it costs that clients choose how much is masked: random mask ratios beside one ratio, through the real batcher.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/ratios.py --clients 128

Behind the batcher is an engine that sleeps 20 ms + 0.1 ms an image, as a GPU would with a small model: what counts is
how full the batches are. Each client sends its next image as soon as it has an answer; both cases take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from model.engines.base import Bytes, Floats, Indices
from service.batcher import Batcher
from service.metrics import Metrics

PATCHES, PATCH, WIDTH = 196, 768, 192


class SleepingEngine:
    """Takes `base_s` a batch and `image_s` an image, and counts its batches."""

    def __init__(self, lanes: int, batch: int, base_s: float = 0.020, image_s: float = 0.0001) -> None:
        self.info: Any = SimpleNamespace(config=SimpleNamespace(num_patches=PATCHES))
        self.lanes, self.preferred_batch = lanes, batch
        self.batches = 0
        self._base_s, self._image_s = base_s, image_s

    def embed(self, lane: int, patches: Bytes, positions: Indices) -> Floats:
        time.sleep(self._base_s + self._image_s * len(patches))
        self.batches += 1
        return np.ones((len(patches), 2, WIDTH), np.float32)


async def rate(ratios: str, clients: int, lanes: int, batch: int, seconds: float) -> tuple[float, float]:
    """Images a second, and images a batch."""
    engine = SleepingEngine(lanes, batch)
    batcher = Batcher(engine, Metrics(), queue_images=2 * clients)  # type: ignore[arg-type]
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
    found: dict[str, list[tuple[float, float]]] = {"one": [], "random": []}
    for turn in range(5):
        for ratios in ("one", "random") if turn % 2 == 0 else ("random", "one"):
            one = asyncio.run(rate(ratios, given.clients, given.lanes, given.batch, given.seconds))
            found[ratios].append(one)
    for ratios, figures in found.items():
        images, full = (median(figure[place] for figure in figures) for place in (0, 1))
        print(f"{ratios:7} {images:8.0f} images/s, {full:5.1f} images a batch")
    print(f"random / one: {median(b[0] / a[0] for a, b in zip(*found.values(), strict=True)):.2f}")


if __name__ == "__main__":
    main()
