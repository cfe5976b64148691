"""Recall and time of searches in an index of real images, and in an index of a million vectors made after them.

    .venv/bin/python -m tests.benchmarks.search photos.lance --made 100000 1000000

Vectors are made after those of the given index, which should be whitened: a random image's vector a, a vector b of one
of its ten neighbours, a + t (b - a) with t drawn from 0 to 1, and normal noise of 0.3 to 1 times the size of a. The
nearest similarities among as many made as real vectors are printed beside each other. Queries are 200 more vectors that
are made in the same way and belong to no index. Exact neighbours come from NumPy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from model.arrays import Floats, Indices
from service.index.approximate import EXACT_ROWS, update_approximation
from service.index.exact import exact_neighbours, normalise
from service.index.store import ImageIndex
from service.index.table import IndexRow
from service.inference.searcher import Neighbour

K, QUERIES, AT_ONCE = 10, 200, 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--made", type=int, nargs="*", default=[1_000_000])
    arguments = parser.parse_args()
    given = ImageIndex.open(arguments.index)
    real = np.concatenate([vectors for _, _, vectors in given.vectors()])
    unit = normalise(real)
    numbers, similarities = exact_neighbours(unit, [unit], K + 1)
    alike = make_vectors(real, numbers[:, 1:], len(real), seed=1)
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    _, of_made = exact_neighbours(normalise(alike), [alike], 2)
    for name, nearest in (("real", similarities[:, 1]), ("made", of_made[:, 1])):
        print(name, "similarity to the nearest, 5 % to 95 %:", np.quantile(nearest, quantiles).round(2).tolist())
    queries = make_vectors(real, numbers[:, 1:], QUERIES, seed=2)
    measure(given, queries, f"{len(real)} real")
    with_cells(given, f"{len(real)} real", queries, iter([real]))
    for count in arguments.made:
        starts = range(0, count, AT_ONCE)
        made = (make_vectors(real, numbers[:, 1:], min(AT_ONCE, count - start), seed=100 + start) for start in starts)
        with_cells(given, f"{count} made", queries, made)


def with_cells(given: ImageIndex, name: str, queries: Floats, batches: Iterator[Floats]) -> None:
    """Measures an index of other vectors, which has cells although it may be small."""
    with tempfile.TemporaryDirectory() as folder:
        index = ImageIndex.create(Path(folder) / "made.lance", given.description)
        count = 0
        for vectors in batches:
            index.add([IndexRow(f"/{number}", "", row, 0, 0) for number, row in enumerate(vectors, count)])
            count += len(vectors)
        began = time.perf_counter()
        index.compact()
        update_approximation(index, min(EXACT_ROWS, count - 1))
        print(f"{name}: built and measured in {time.perf_counter() - began:.0f} s", index.approximation)
        measure(index, queries, name)


def make_vectors(real: Floats, neighbours: Indices, count: int, seed: int) -> Floats:
    """Vectors between real ones and their neighbours, with noise, float32 [count, D]."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(real), count)
    near = neighbours[chosen, rng.integers(0, neighbours.shape[1], count)]
    share = rng.random((count, 1), dtype=np.float32)
    size = np.linalg.norm(real[chosen], axis=1, keepdims=True) / np.sqrt(real.shape[1])
    noise = (0.3 + 0.7 * rng.random((count, 1), dtype=np.float32)) * size
    between = real[chosen] + share * (real[near] - real[chosen])
    return np.asarray(between + noise * rng.standard_normal(between.shape, dtype=np.float32), np.float32)


def measure(index: ImageIndex, queries: Floats, name: str) -> None:
    """Prints the time of a search, one at a time, and its recall of the exact neighbours."""
    truth, _ = exact_neighbours(normalise(queries), (vectors for _, _, vectors in index.vectors()), K)
    files = [file for batch, _, _ in index.vectors() for file in batch]
    few = queries[: 20 if index.count > EXACT_ROWS else QUERIES]
    ways: list[tuple[str, Floats, Callable[[Floats], list[list[Neighbour]]]]]
    ways = [("exact", few, lambda query: index.search(query, K, exact=True))]
    if index.approximation is not None:
        ways.append(("in cells", queries, lambda query: index.search(query, K)))
    for way, asked, search in ways:
        search(asked[:1])
        times, shares = [], []
        for query, row in zip(asked, truth, strict=False):
            began = time.perf_counter()
            [found] = search(query[None])
            times.append(time.perf_counter() - began)
            shares.append(len({near.file for near in found} & {files[number] for number in row}) / K)
        middle, slow = np.quantile(times, [0.5, 0.95]) * 1000
        print(f"{name}, {way}: recall@10 {np.mean(shares):.4f}, median {middle:.1f} ms, 95 % within {slow:.1f} ms")


if __name__ == "__main__":
    main()
