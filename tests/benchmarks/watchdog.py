"""What the watchdog costs: core-milliseconds per batch, and the seconds that the measurement at the start takes.

.venv/bin/python -m tests.benchmarks.watchdog
"""

from __future__ import annotations

import time

import numpy as np

from model.engines.build import build
from model.engines.measure import time_batch
from service.inference.watchdog import Heartbeat, Watchdog, WatchedEngine
from service.settings import load_settings
from tests.support.engines import FakeEngine
from tests.support.queueing import ALL_FOUR, image

CALLS, TURNS, BEATS_S = 20_000, 5, 30.0


def core_ms(engine: FakeEngine | WatchedEngine) -> float:
    """Core-milliseconds per call of an engine that computes nothing; the least of some turns."""
    patches, visible_indices = image(1)[None], ALL_FOUR[None]
    best = float("inf")
    for _ in range(TURNS):
        begin = time.thread_time()
        for _ in range(CALLS):
            engine.embed(0, patches, visible_indices)
        best = min(best, time.thread_time() - begin)
    return 1000 * best / CALLS


def beat_share() -> float:
    """Share of one core that the heartbeat takes beside a lane that waits."""
    watchdog = Watchdog(0.01, lambda: None)
    heartbeat = Heartbeat(watchdog, print)
    begin, cpu = time.monotonic(), time.process_time()
    heartbeat.start()
    time.sleep(BEATS_S)
    heartbeat.stop()
    return (time.process_time() - cpu) / (time.monotonic() - begin)


def main() -> None:
    """Prints the figures."""
    plain = core_ms(FakeEngine())
    watched = core_ms(WatchedEngine(FakeEngine(), Watchdog(0.01, lambda: None)))
    print(f"per batch: {watched - plain:.4f} core-ms ({watched:.4f} watched, {plain:.4f} not)")
    print(f"heartbeat: {1000 * beat_share():.2f} core-ms per second")
    engine = build(load_settings(precision="fp32").engine, print).engine
    seconds = [time_batch(engine, 1) for _ in range(11)]
    print(f"time_batch at the start: {seconds[0]:.3f} s, median of {len(seconds)} {np.median(seconds):.3f} s")


if __name__ == "__main__":
    main()
