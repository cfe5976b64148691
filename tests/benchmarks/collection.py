"""`mae embed` of a collection beside its limit: images/s of the whole command, and what its parts alone would allow.

    .venv/bin/python -m tests.benchmarks.collection photographs/ more/ --turns 2

The limit is the number of CPUs over the core-seconds per image of reading and decoding, the engine (whole images, full
batches, all lanes) and writing the shards, each measured alone in this process, before and after the command. The
command is a process of its own. Its rate is over the time from its first rows to its end, so that loading the engine
does not count; the rate with it is given, too. core_ms is the CPU time of the whole process per image, with its start.
Settings come from the environment (MAE_…).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

import numpy as np

from model.benchmark.timing import Contender, Size, measure
from model.engines.base import ServedModel
from service.cli.image_decoding import DecoderSettings, FileDecoder, UnreadImage
from service.cli.image_sources.listing import Listing
from service.cli.local_pipeline import build_engine
from service.cli.vector_files.shard_store import ShardStore
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.inference.embedding import EmbeddingPlan
from service.parameters import EmbedParameters
from service.settings import Settings, load_settings


def decode_cost(served: ServedModel, settings: Settings, paths: Sequence[str], count: int) -> float:
    """Core-seconds per image of listing, reading and decoding, in one thread, of `count` images spread evenly."""
    decoder = FileDecoder(DecoderSettings.of(served.info, settings))
    total = sum(1 for _ in Listing(paths))
    entries = list(islice(Listing(paths), 0, None, max(1, total // count)))
    decoder([UnreadImage(entry.path, entry.read) for entry in entries[:20]])
    start = time.process_time()
    decoder([UnreadImage(entry.path, entry.read) for entry in entries])
    return (time.process_time() - start) / len(entries)


def engine_cost(served: ServedModel, seconds: float) -> float:
    """Core-seconds per image of the engine."""
    info = served.info
    size = Size("embed", info.config.num_patches, info.preferred_batch, info.lanes)
    [figures] = measure([Contender("engine", served.engine, [size])], seconds, 3)
    return figures.core_ms / 1000


def writing_cost(served: ServedModel, count: int) -> float:
    """Core-seconds per image of writing shards."""
    plan = EmbeddingPlan.of(EmbedParameters(), served.info, served.heads)
    vectors = np.random.default_rng(0).normal(size=(count, plan.dim(served.info.config))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        with ShardStore(Path(folder) / "out", False) as store:
            store.begin(VectorSpace.of(served.info, plan))
            for number, vector in enumerate(vectors):
                name = f"/photographs/of/a/collection/image_{number:08}.jpg"
                store.append(VectorRecord(name, vector, name, None, 10_000, number))
            store.finish()
        return (time.process_time() - start) / count


def run_command(paths: Sequence[str], settings: Settings) -> dict[str, float]:
    """Runs `mae embed` over all paths; images, rates, core_ms and its largest memory."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        first: list[float] = []

        def watch() -> None:
            journal = output / ".partial" / "journal"
            while not first and process.poll() is None:
                if journal.exists() and journal.stat().st_size > 4000:
                    first.append(time.monotonic())
                time.sleep(0.01)

        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [str(Path(sys.executable).with_name("mae")), "embed", *paths, "-o", f"{output}/"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            watcher = threading.Thread(target=watch)
            watcher.start()
            _, err = process.communicate()
            watcher.join()
        end, after = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        images = int(err.split(" embedded")[0].split()[-1])
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "images": images,
            "seconds": end - start,
            "images_per_s": images / (end - first[0]),
            "images_per_s_with_start": images / (end - start),
            "core_ms": 1000 * cpu / images,
            "peak_mb": after.ru_maxrss / 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15, help="for the engine alone, before and after each turn")
    arguments = parser.parse_args()
    settings = load_settings()
    served = build_engine(settings)
    cpus = settings.decode_threads

    def parts() -> dict[str, float]:
        return {
            "decode_ms": 1000 * decode_cost(served, settings, arguments.paths, 800),
            "engine_ms": 1000 * engine_cost(served, arguments.seconds),
            "writing_ms": 1000 * writing_cost(served, 20_000),
        }

    measured = [parts()]
    for _ in range(arguments.turns):
        figures = run_command(arguments.paths, settings)
        measured.append(parts())
        both = {name: mean(turn[name] for turn in measured[-2:]) for name in measured[-1]}
        limit = 1000 * cpus / sum(both.values())
        shares = {"limit_images_per_s": limit, "share_of_limit": figures["images_per_s"] / limit}
        print(json.dumps({name: round(value, 3) for name, value in {**both, **figures, **shares}.items()}), flush=True)


if __name__ == "__main__":
    main()
