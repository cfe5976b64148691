"""Stages of a request by themselves: decoding an image, and writing an answer."""

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
"""What the routes answer when nothing is asked for."""


def decoding(
    info: EngineInfo, samples: Sequence[Sample], max_pixels: int, threads: int, seconds: float
) -> list[StageCost]:
    """Bytes to patches, by the service's own decoder."""
    decoder = ImageDecoder(info.config, info.preprocessing, max_pixels, threads)
    try:
        return [_cost("decode", one.name, one.mean_bytes, threads, seconds, _calls(one, decoder)) for one in samples]
    finally:
        decoder.close()


def answering(info: EngineInfo, threads: int, seconds: float) -> list[StageCost]:
    """Results to bytes: one image's vectors in every form, and where there is a decoder its pictures."""
    from service.api.responses import json_bytes
    from service.api.routes.embed import base64_floats, npy  # here: `mae --help` needs no web framework

    config = info.config
    vector = np.random.default_rng(0).standard_normal((1, config.embed_dim), dtype=np.float32)
    tokens = np.random.default_rng(0).standard_normal((1, config.num_patches, config.embed_dim), dtype=np.float32)
    facts = {"model": info.model_id, "pool": "mean", "dim": config.embed_dim, "count": 1}
    writers: dict[str, Callable[[], bytes]] = {
        JSON_VECTOR: lambda: json_bytes({**facts, "embeddings": vector}),
        "JSON, a vector in base64": lambda: json_bytes({**facts, "embeddings": [base64_floats(one) for one in vector]}),
        "JSON, all tokens": lambda: json_bytes({**facts, "embeddings": tokens}),
        "npy, a vector": lambda: npy(vector),
    }
    if config.has_decoder:
        patches = fixed_patches(config)[0]
        visible = choose_visible("random", config.grid, MASK_RATIO, 0)
        error = np.ones(config.num_patches, np.float32)
        for view in VIEWS:
            writers[f"PNG, {view}"] = partial(render, view, patches, patches, error, visible)
    return [_cost("answer", name, len(write()), threads, seconds, [write]) for name, write in writers.items()]


def _calls(sample: Sample, decoder: ImageDecoder) -> list[Callable[[], object]]:
    return [partial(decoder.decode, data, 0) for data in sample.files]


def _cost(
    stage: str, what: str, size: float, threads: int, seconds: float, calls: Sequence[Callable[[], object]]
) -> StageCost:
    """Repeats `calls` in as many threads as the service has for them, all at once: cores share what is beside them."""
    line = Barrier(threads)

    def work(first: int) -> tuple[list[float], float]:
        taken: list[float] = []
        line.wait()
        start = now = time.perf_counter()
        while now - start < seconds or not taken:
            calls[(first + len(taken)) % len(calls)]()
            before, now = now, time.perf_counter()
            taken.append(now - before)
        return taken, len(taken) / (now - start)

    for call in calls:  # what is set up once is not the stage's
        call()
    with ThreadPoolExecutor(threads) as pool:
        before = time.process_time()
        done = list(pool.map(work, range(threads)))
        spent = time.process_time() - before
    all_taken = [one for taken, _ in done for one in taken]
    return StageCost(
        stage=stage,
        what=what,
        kilobytes=size / 1000,
        threads=threads,
        ms=1000 * float(np.median(all_taken)),
        core_ms=1000 * spent / len(all_taken),
        images_per_s=sum(rate for _, rate in done),
        cores=spent * sum(rate for _, rate in done) / len(all_taken),
        images=len(all_taken),
    )
