"""Measures each stage of a request alone: decoding an image, and writing an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np

from model.engines.base import EngineInfo
from model.engines.fixed_images import fixed_patches
from model.images.render import View, render
from model.masking import choose_visible
from service.benchmark.results import StageCost
from service.benchmark.samples import Sample
from service.inference.image_decoder import ImageDecoder

MASK_RATIO = 0.75
VIEWS: tuple[View, ...] = ("composite", "panel")
JSON_VECTOR, PNG_COMPOSITE = "JSON, a vector", "PNG, composite"
"""The default answers of /embed and /reconstruct."""


def measure_decoding(
    info: EngineInfo, samples: Sequence[Sample], max_pixels: int, threads: int, seconds: float
) -> list[StageCost]:
    """The cost of decoding a file to patches by the service's own decoder, for each of `samples`."""
    decoder = ImageDecoder(info.config, info.preprocessing, max_pixels)
    return [
        _measure(
            "decode",
            sample.name,
            sample.mean_bytes,
            threads,
            seconds,
            [partial(decoder.decode, file, 0) for file in sample.files],
        )
        for sample in samples
    ]


def measure_answers(info: EngineInfo, threads: int, seconds: float) -> list[StageCost]:
    """The cost of writing one image's results: vectors in every form, and pictures if the model has a decoder."""
    # Imported lazily: `mae --help` does not need the web framework.
    from service.api.responses import json_bytes
    from service.api.routes.embed import base64_numbers, npy_bytes

    config = info.config
    vector = np.random.default_rng(0).standard_normal((1, config.embed_dim), dtype=np.float32)
    tokens = np.random.default_rng(0).standard_normal((1, config.num_patches, config.embed_dim), dtype=np.float32)
    head = {"model": info.model_id, "pool": "mean", "dim": config.embed_dim, "count": 1}
    writers: dict[str, Callable[[], bytes]] = {
        JSON_VECTOR: lambda: json_bytes({**head, "embeddings": vector}),
        "JSON, a vector in base64": lambda: json_bytes({**head, "embeddings": [base64_numbers(vector[0])]}),
        "JSON, all tokens": lambda: json_bytes({**head, "embeddings": tokens}),
        "npy, a vector": lambda: npy_bytes(vector),
    }
    if config.has_decoder:
        patches = fixed_patches(config)[0]
        visible_indices = choose_visible("random", config.grid, MASK_RATIO, 0)
        error = np.ones(config.num_patches, np.float32)
        for view in VIEWS:
            writers[f"PNG, {view}"] = partial(render, view, patches, patches, error, visible_indices)
    return [_measure("answer", name, len(write()), threads, seconds, [write]) for name, write in writers.items()]


def _measure(
    stage: str, subject: str, size: float, threads: int, seconds: float, calls: Sequence[Callable[[], object]]
) -> StageCost:
    """Repeats `calls` in as many threads as the service has for them; the threads compete for the cores."""
    start_line = Barrier(threads)

    def work(first: int) -> tuple[list[float], float]:
        """The seconds of each call, and calls per second."""
        durations: list[float] = []
        start_line.wait()
        start = now = time.perf_counter()
        while now - start < seconds or not durations:
            calls[(first + len(durations)) % len(calls)]()
            before, now = now, time.perf_counter()
            durations.append(now - before)
        return durations, len(durations) / (now - start)

    for call in calls:  # a warm-up: work that is done only once does not belong to the stage
        call()
    with ThreadPoolExecutor(threads) as pool:
        before = time.process_time()
        results = list(pool.map(work, range(threads)))
        core_seconds = time.process_time() - before
    durations = [duration for thread_durations, _ in results for duration in thread_durations]
    calls_per_s = sum(rate for _, rate in results)
    return StageCost(
        stage=stage,
        what=subject,
        kilobytes=size / 1000,
        threads=threads,
        ms=1000 * float(np.median(durations)),
        core_ms=1000 * core_seconds / len(durations),
        images_per_s=calls_per_s,
        cores=core_seconds * calls_per_s / len(durations),
        images=len(durations),
    )
