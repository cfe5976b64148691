"""Approximate search in large indexes: cells of similar vectors (IVF), of which a search looks into a few.

The vectors in the cells are not compressed (IVF_FLAT), so what is found has its exact similarity, and vectors may have
any length. How many cells a search looks into is chosen by measured recall.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from service.index.description import Approximation
from service.index.exact import exact_neighbours, normalise
from service.index.store import ImageIndex

EXACT_ROWS = 100_000
"""Up to so many images an exact search takes about 0.05 s, and no cells are made."""
GROWTH = 2.0
"""The cells are made anew once the index has grown by this factor."""
TARGET_RECALL = 0.98
QUERIES = 200
FEWEST_PROBES = 8
K = 10


def update_approximation(
    index: ImageIndex, exact_rows: int = EXACT_ROWS, progress: Callable[[str], None] = lambda step: None
) -> Approximation | None:
    """Gives an index of more than `exact_rows` images its cells, and measures the recall of a search in them.

    Queries are vectors of the index, drawn with a fixed seed; each is left out of its own neighbours. The number of
    cells that a search looks into is doubled until the recall reaches `TARGET_RECALL`.

    Args:
        index: locked for writing.
        exact_rows: the most images that are searched exactly.
        progress: is told of each step.

    Returns:
        What was measured; None if the index is searched exactly.

    Raises:
        ImageIndexError: the index cannot be written.
    """
    count = index.count
    if count <= exact_rows:
        index.remove_approximation()
        return None
    existing = index.approximation
    partitions, rows = (existing.partitions, existing.rows) if existing else (0, 0)
    if count > GROWTH * rows or count < rows / GROWTH:
        partitions, rows = round(math.sqrt(count)), count
        progress(f"dividing {count} vectors into {partitions} cells")
        index.build_cells(partitions)
    progress("measuring the recall")
    drawn = np.sort(np.random.default_rng(0).choice(count, min(QUERIES, count), replace=False))
    files: list[str] = []
    batches = []
    first = 0
    for names, _, vectors in index.vectors():
        inside = drawn[(drawn >= first) & (drawn < first + len(names))] - first
        files += [names[number] for number in inside]
        batches.append(vectors[inside])
        first += len(names)
    queries = normalise(np.concatenate(batches))
    numbers, _ = exact_neighbours(queries, (vectors for _, _, vectors in index.vectors()), K + 1)
    truth = _without_themselves(numbers, drawn)
    names_of = _names(index, {number for row in truth for number in row})
    probes = min(FEWEST_PROBES, partitions)
    while True:
        approximation = Approximation(
            kind="IVF_FLAT", partitions=partitions, probes=probes, recall=0, queries=len(drawn), rows=rows
        )
        found = index.search(queries, K + 1, approximation=approximation)
        shares = [
            len({names_of[number] for number in row} & {near.file for near in neighbours if near.file != file})
            / len(row)
            for row, neighbours, file in zip(truth, found, files, strict=True)
        ]
        recall = float(np.mean(shares))
        if recall >= TARGET_RECALL or probes >= partitions:
            measured = approximation.model_copy(update={"recall": recall})
            index.set_approximation(measured)
            return measured
        probes = min(2 * probes, partitions)


def _without_themselves(numbers: np.ndarray, drawn: np.ndarray) -> list[list[int]]:
    """The first K neighbours of each drawn vector, without itself."""
    return [
        [int(number) for number in row if number not in (own, -1)][:K] for row, own in zip(numbers, drawn, strict=True)
    ]


def _names(index: ImageIndex, numbers: set[int]) -> dict[int, str]:
    """The file of each number, in the order in which the index is read."""
    names: dict[int, str] = {}
    first = 0
    for files, _, _ in index.vectors():
        names |= {number: files[number - first] for number in numbers if first <= number < first + len(files)}
        first += len(files)
    return names
