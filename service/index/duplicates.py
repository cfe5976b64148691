"""Near-duplicates in an index: pairs of images that are much nearer to each other than to the others around them.

How near unrelated images are depends on the model and on the images: faces before a white wall are nearer to each other
than landscapes. So a pair is judged by a ratio, as in Lowe's test for matches of SIFT (IJCV 2004): its cosine distance,
divided by the distance to the fourth neighbour, of the image of the two to which that is nearer.

The default threshold comes from the index itself. Among unrelated images, distances to the neighbours of an image grow
as those of points that are spread evenly in m dimensions, where m is the intrinsic dimension that the second to fourth
neighbours show (after Levina and Bickel, NIPS 2004). Then the nearest neighbour has a ratio below c with probability
1 - (1 - c^m)^3. From these p-values of all images, the procedure of Benjamini and Hochberg (1995) takes the largest
threshold at which a given share of the images found is false.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats, Indices
from service.index.exact import exact_neighbours, normalise
from service.index.store import ImageIndex
from service.index.table import StoredFile

NEIGHBOURS = 16
"""Neighbours of each image that are looked at."""
RANK = 4
"""The neighbour whose distance a pair is compared with."""
COPY = 0.1
"""Neighbours nearer than this share of the median distance at `RANK` are copies, and are not counted for the rank."""
ROUNDING = 1e-6
"""Cosine distances below this are those of equal vectors, whose cosine was rounded to float32."""
FALSE_DISCOVERIES = 0.1
"""Share of the images found that may be no near-duplicates, by default."""
QUERIES_AT_ONCE = 256

Doubles = NDArray[np.float64]


class Duplicate(NamedTuple):
    """An image of a group."""

    file: str
    path: str
    size: int | None
    """Bytes, if known."""
    similarity: float
    """Cosine similarity to the nearest image of the group."""
    ratio: float
    """Distance ratio to the nearest image of the group; small is near."""


class Duplicates(NamedTuple):
    """The near-duplicates of an index."""

    threshold: float
    """The largest distance ratio of a pair."""
    groups: list[list[Duplicate]]
    """Images that pairs connect, the largest file first, which is the one to keep; the largest groups first."""


def find_duplicates(
    index: ImageIndex, threshold: float | None = None, false_discoveries: float = FALSE_DISCOVERIES
) -> Duplicates:
    """Finds groups of near-duplicates.

    The time grows with the square of the number of images up to `approximate.EXACT_ROWS` images; above, it is that of
    one approximate search per image.

    Args:
        index: the index.
        threshold: the largest distance ratio of a pair; by default it is chosen from the index.
        false_discoveries: the share of the images found that may be false, from which the threshold is chosen.

    Raises:
        ImageIndexError: the index cannot be read.
    """
    files, paths, neighbours, similarities = _neighbours_of_all(index)
    if len(files) < 2:
        return Duplicates(threshold or 0.0, [])
    distances = 1 - similarities.astype(np.float64)
    distances[distances < ROUNDING] = 0
    distances[neighbours < 0] = np.inf
    ratios, dimension = _distance_ratios(neighbours, distances)
    if threshold is None:
        threshold = _choose_threshold(ratios, dimension, false_discoveries)
    groups = _connect(ratios <= threshold, neighbours)
    stored = index.files()
    described = [
        _describe(group, files, paths, stored, neighbours, similarities, ratios) for group in groups if len(group) > 1
    ]
    return Duplicates(threshold, sorted(described, key=lambda group: (-len(group), group[0].path)))


def _neighbours_of_all(index: ImageIndex) -> tuple[list[str], list[str], Indices, Floats]:
    """Files, paths, and the neighbours of each image without itself: numbers and similarities [n, k], -1 for none."""
    files, paths, parts = [], [], []
    for some_files, some_paths, some_vectors in index.vectors():
        files += some_files
        paths += some_paths
        parts.append(normalise(some_vectors))
    k = min(NEIGHBOURS, len(files) - 1)
    if k < 1:
        return files, paths, np.empty((len(files), 0), np.int32), np.empty((len(files), 0), np.float32)
    vectors = np.concatenate(parts)
    if index.approximation is None:
        numbers, similarities = exact_neighbours(vectors, parts, k + 1)
    else:
        number_of = {file: number for number, file in enumerate(files)}
        numbers = np.full((len(files), k + 1), -1, np.int32)
        similarities = np.full((len(files), k + 1), -1, np.float32)
        for start in range(0, len(files), QUERIES_AT_ONCE):
            for row, near in enumerate(index.search(vectors[start : start + QUERIES_AT_ONCE], k + 1), start):
                numbers[row, : len(near)] = [number_of.get(neighbour.file, -1) for neighbour in near]
                similarities[row, : len(near)] = [neighbour.similarity for neighbour in near]
    return files, paths, *_leave_themselves_out(numbers, similarities)


def _leave_themselves_out(numbers: Indices, similarities: Floats) -> tuple[Indices, Floats]:
    """Each image's neighbours without the image itself, [n, k + 1] -> [n, k]; among many copies the last is dropped."""
    itself = numbers == np.arange(len(numbers))[:, None]
    itself[~itself.any(axis=1), -1] = True
    kept = ~itself
    shape = (len(numbers), numbers.shape[1] - 1)
    return numbers[kept].reshape(shape), similarities[kept].reshape(shape)


def _distance_ratios(neighbours: Indices, distances: Doubles) -> tuple[Doubles, float]:
    """The distance ratio of each image with each neighbour, [n, k], and the intrinsic dimension."""
    count, k = distances.shape
    rank = min(RANK, k)
    rows = np.arange(count)
    usual = float(np.median(distances[:, rank - 1][np.isfinite(distances[:, rank - 1])]))
    copies = (distances < COPY * usual).sum(axis=1)

    def at(number: int) -> Doubles:
        """The distance to the neighbour of a rank, copies not counted; at least the usual one where all are copies."""
        column = copies + number - 1
        inside = distances[rows, np.minimum(column, k - 1)]
        distance: Doubles = np.where(column < k, inside, np.maximum(inside, usual))
        return distance

    with np.errstate(divide="ignore", invalid="ignore"):  # where most images are copies, distances are 0
        spacings = [number * np.log(at(number + 1) / at(number)) for number in range(2, rank)]
    seen = np.concatenate(spacings) if spacings else np.empty(0)
    seen = seen[np.isfinite(seen)]
    dimension = 1 / float(seen.mean()) if len(seen) and seen.mean() > 0 else 1.0
    around = np.maximum(at(rank), np.finfo(np.float32).eps)
    return distances / np.minimum(around[:, None], around[neighbours]), dimension


def _choose_threshold(ratios: Doubles, dimension: float, false_discoveries: float) -> float:
    """The largest ratio at which the share `false_discoveries` of the images found is expected to be false."""
    nearest = np.sort(ratios.min(axis=1))
    p_values = 1 - (1 - np.clip(nearest, 0, 1) ** dimension) ** (RANK - 1)
    allowed = false_discoveries * np.arange(1, len(nearest) + 1) / len(nearest)
    passed = np.nonzero(p_values <= allowed)[0]
    return float(nearest[passed[-1]]) if len(passed) else 0.0


def _connect(are_pairs: NDArray[np.bool_], neighbours: Indices) -> list[list[int]]:
    """The images that pairs connect, directly or through others."""
    parent = list(range(len(neighbours)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, column in zip(*np.nonzero(are_pairs), strict=True):
        parent[root(int(first))] = root(int(neighbours[first, column]))
    groups = defaultdict(list)
    for first in {int(number) for number in np.nonzero(are_pairs.any(axis=1))[0]} | {
        int(number) for number in neighbours[are_pairs]
    }:
        groups[root(first)].append(first)
    return [sorted(group) for group in groups.values()]


def _describe(
    group: list[int],
    files: list[str],
    paths: list[str],
    stored: dict[str, StoredFile],
    neighbours: Indices,
    similarities: Floats,
    ratios: Doubles,
) -> list[Duplicate]:
    """The images of a group, the largest file first."""
    inside = np.isin(neighbours[group], group)
    nearest = np.where(inside, ratios[group], np.inf).argmin(axis=1)
    described = [
        Duplicate(
            files[number],
            paths[number],
            stored[files[number]].size,
            min(1.0, float(similarities[number, column])),  # the rounding of a copy's cosine may be above 1
            float(ratios[number, column]),
        )
        for number, column in zip(group, nearest, strict=True)
    ]
    return sorted(described, key=lambda image: (-(image.size or 0), image.path))
