"""Computes how many machines a load takes, from measured images/s: the tables of docker/SIZING.md.

    .venv/bin/python -m tests.benchmarks.sizing

It is arithmetic: nothing is measured here. Where each figure was measured stands beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

USE = 0.7
"""Share of its highest throughput at which a replica is used online."""
ONLINE = (10, 1_000, 100_000)
"""Images per second."""
ONCE = (1_000_000, 1_000_000_000)
"""Images of a collection."""
UPLOAD_BYTES = 38_000
"""A JPEG of 500 x 334 pixels, as the measured loads had."""
VECTOR_BYTES = 192 * 4
"""A vector of mae_tiny in float32."""


@dataclass(frozen=True)
class Replica:
    """One replica of the service: what it has, and what it was measured to do.

    Attributes:
        name: model, precision and hardware.
        images_per_s: of `/embed`, JPEGs of 500 x 334, one per request.
        cores: CPUs.
        gpus: GPUs.
        memory_gib: the memory limit of its overlay in docker/kubernetes.
    """

    name: str
    images_per_s: float
    cores: int
    gpus: int
    memory_gib: int


REPLICAS = (
    # service/benchmark/README.md, "Figures": two virtual cores of an AMD EPYC, 32 connections (mae_base: 16).
    Replica("mae_tiny, fp32, 2 cores", 65, 2, 0, 2),
    Replica("mae_tiny, bf16, 2 cores", 104, 2, 0, 2),
    Replica("mae_tiny, int8, 2 cores", 122, 2, 0, 2),
    Replica("mae_base, fp32, 2 cores", 5.7, 2, 0, 4),
    Replica("mae_base, int8, 2 cores", 18.5, 2, 0, 4),
    # The same page, "On a GPU": 8 HTTP workers, 128 connections. The cores are the limit, not the GPU.
    Replica("mae_tiny, fp16, H200 with 16 cores", 2887, 16, 1, 16),
)


def online(images_per_s: float, replica: Replica) -> int:
    """Replicas for a load: each at `USE` of its throughput, and two at least, so that one may fail."""
    return max(2, math.ceil(images_per_s / (USE * replica.images_per_s)))


def machine_hours(images: int, replica: Replica) -> float:
    """Hours that one replica takes for a collection, at its highest throughput."""
    return images / replica.images_per_s / 3600


def rounded(number: float) -> str:
    """Two digits below 10, else three."""
    digits = 2 if number < 10 else 3
    places = digits - 1 - math.floor(math.log10(number))
    return f"{round(number, places):,.{max(places, 0)}f}"


def tables() -> list[str]:
    """The lines of both tables, in Markdown."""
    lines = [
        "| a replica | images/s | " + " | ".join(f"for {rate:,} images/s" for rate in ONLINE) + " |",
        "|---|---|" + "---|" * len(ONLINE),
    ]
    for replica in REPLICAS:
        cells = []
        for rate in ONLINE:
            count = online(rate, replica)
            gpus = f"{count * replica.gpus:,} GPUs, " if replica.gpus else ""
            memory = count * replica.memory_gib
            cells.append(f"{count:,} replicas: {gpus}{count * replica.cores:,} cores, {memory:,} GiB")
        lines.append(f"| {replica.name} | {replica.images_per_s:,} | {' | '.join(cells)} |")
    lines += ["", "| a replica | " + " | ".join(f"{images:,} images once" for images in ONCE) + " |"]
    lines.append("|---|" + "---|" * len(ONCE))
    for replica in REPLICAS:
        cells = []
        for images in ONCE:
            hours = machine_hours(images, replica)
            gpus = f"{rounded(hours * replica.gpus)} GPU-hours, " if replica.gpus else ""
            cells.append(f"{gpus}{rounded(hours * replica.cores)} core-hours")
        lines.append(f"| {replica.name} | {' | '.join(cells)} |")
    for name, size in (("JPEGs of 500 x 334", UPLOAD_BYTES), ("vectors, 192 x float32", VECTOR_BYTES)):
        lines.append(f"| {name} | " + " | ".join(f"{rounded(images * size / 1e9)} GB" for images in ONCE) + " |")
    return lines


def main() -> None:
    """Prints both tables."""
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
