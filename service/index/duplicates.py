"""Near-duplicates in an index, in two stages: candidates, of which the pixels are compared.

Candidates are the nearest images by vectors and, in an index that is searched exactly, by signatures and by mirrored
signatures. A pair of them is near-duplicate if its pixels agree (see `pixels`), which does not depend on the model.

The vectors alone decide on pairs of which one file cannot be read, or is plain.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.images.errors import ImageError
from model.images.packs import read_image_file
from service.index.exact import exact_neighbours, normalise
from service.index.pixels import PixelComparison
from service.index.signatures import SIDE, make_signature
from service.index.store import ImageIndex
from service.index.table import StoredFile

NEIGHBOURS = 20
"""Neighbours of each image by vectors that are looked at."""
LOOKALIKES = 8
"""Neighbours of each image by signatures that are looked at, and as many by mirrored ones."""
PIXELS = 0.77
"""Correlation of the pixels of a pair from which on it is near-duplicate, by default."""
RANK = 4
"""The neighbour whose distance a pair is compared with."""
COPY = 0.1
"""Neighbours nearer than this share of the median distance at `RANK` are copies, and are not counted for the rank."""
FALSE_DISCOVERIES = 0.1
"""Share of the images found that may be no near-duplicates, by default."""
QUERIES_AT_ONCE = 256
PAIRS_AT_ONCE = 65536
BATCH = 4096

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
    pixels: float | None
    """Largest correlation of its pixels with those of an image of the group; None if no pixels were compared."""


class Duplicates(NamedTuple):
    """The near-duplicates of an index."""

    threshold: float
    """The largest distance ratio of a pair that vectors alone decide on."""
    unread: int
    """Images whose files cannot be read, so that vectors alone decide on them."""
    groups: list[list[Duplicate]]
    """Images that pairs connect, the largest file first, which is the one to keep; the largest groups first."""


def find_duplicates(
    index: ImageIndex,
    threshold: float | None = None,
    false_discoveries: float = FALSE_DISCOVERIES,
    pixels: float = PIXELS,
) -> Duplicates:
    """Finds groups of near-duplicates; it reads the files of the images as far as they are there.

    The time grows with the square of the number of images up to `approximate.EXACT_ROWS` images; above, it is that of
    one approximate search per image.

    Args:
        index: the index.
        threshold: the largest distance ratio of a pair, whether or not its pixels are compared. By default pixels alone
            decide; where they are not compared, a threshold decides that is chosen from the index.
        false_discoveries: the share of the images found by vectors alone that may be false, from which the threshold is
            chosen.
        pixels: the least correlation of the pixels of a pair.

    Raises:
        ImageIndexError: the index cannot be read.
    """
    files, paths, vectors, neighbours, similarities = _neighbours_of_all(index)
    if len(files) < 2:
        return Duplicates(threshold or 0.0, 0, [])
    distances = _distances(similarities)
    distances[neighbours < 0] = np.inf
    around, dimension = _usual_distances(distances)
    ratios = distances / np.minimum(around[:, None], around[neighbours])
    limit = _choose_threshold(ratios, dimension, false_discoveries) if threshold is None else threshold
    pairs = _pairs_of(np.arange(len(files)), neighbours)
    was_read, signatures = _read_signatures(files)
    numbers = np.nonzero(was_read)[0]
    can_compare = np.zeros(len(files), np.bool_)
    if len(numbers) > 1:
        comparison = PixelComparison(signatures)
        can_compare[numbers] = ~comparison.is_plain
        if index.approximation is None:
            pairs = np.unique(np.concatenate([pairs, *_lookalikes(comparison, numbers)]), axis=0)
    similarity = _similarities(vectors, pairs)
    ratio = _distances(similarity) / around[pairs].min(axis=1)
    correlation = np.full(len(pairs), np.nan, np.float32)
    compared = can_compare[pairs].all(axis=1)
    if compared.any():
        places = np.cumsum(was_read) - 1
        first, second = places[pairs[compared]].T
        correlation[compared] = comparison.correlations(first, second)
    agrees = correlation >= pixels
    found = (agrees if threshold is None else agrees & (ratio <= threshold)) | (~compared & (ratio <= limit))
    groups = _describe(
        _Found(pairs[found], similarity[found], ratio[found], correlation[found]), files, paths, index.files()
    )
    return Duplicates(limit, int((~was_read).sum()), sorted(groups, key=lambda group: (-len(group), group[0].path)))


class _Found(NamedTuple):
    """Pairs of near-duplicates."""

    pairs: NDArray[np.intp]
    """Numbers of the images, [p, 2]."""
    similarity: Floats
    ratio: Doubles
    correlation: Floats
    """NaN where no pixels were compared."""


def _pairs_of(numbers: NDArray[np.intp], neighbours: Indices) -> NDArray[np.intp]:
    """Each image with each of its neighbours, [p, 2], the smaller number first, without repetitions."""
    first = np.repeat(numbers, neighbours.shape[1])
    pairs = np.stack([first, neighbours.ravel()], axis=1)
    pairs = pairs[(pairs[:, 1] >= 0) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _lookalikes(comparison: PixelComparison, numbers: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The pairs of the images `numbers` that are nearest by signatures, and by mirrored ones, [p, 2] each."""
    k = min(LOOKALIKES + 1, len(numbers))  # an image is its own neighbour
    found = [
        exact_neighbours(comparison.whole, np.split(other, range(BATCH, len(other), BATCH)), k)[0]
        for other in (comparison.whole, comparison.mirrored)
    ]
    return [_pairs_of(numbers, np.where(near >= 0, numbers[near], -1).astype(np.int32)) for near in found]


def _similarities(vectors: Floats, pairs: NDArray[np.intp]) -> Floats:
    """Cosine similarities of pairs of vectors of length 1, float32 [p]."""
    similarity = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        first, second = pairs[start : start + PAIRS_AT_ONCE].T
        similarity[start : start + PAIRS_AT_ONCE] = np.einsum("ij,ij->i", vectors[first], vectors[second])
    return similarity


def _distances(similarities: Floats) -> Doubles:
    """Cosine distances, rounded, so that vectors that are equal but for rounding errors have the distance 0."""
    distances: Doubles = np.maximum(np.round(1 - similarities.astype(np.float64), 6), 0)
    return distances


def _read_signatures(files: Sequence[str]) -> tuple[NDArray[np.bool_], Bytes]:
    """Which images can be read, and the signatures of those, uint8 [n, SIDE, SIDE]."""
    with ThreadPoolExecutor(thread_name_prefix="signature") as pool:
        signatures = list(pool.map(_read_signature, files))
    read = b"".join(signature for signature in signatures if signature is not None)
    was_read = np.array([signature is not None for signature in signatures])
    return was_read, np.frombuffer(read, np.uint8).reshape(-1, SIDE, SIDE)


def _read_signature(file: str) -> bytes | None:
    """The signature of a file; None if it is gone, damaged, in an archive or in a bucket."""
    if "://" in file:
        return None
    try:
        return make_signature(read_image_file(file))
    except (OSError, ImageError):
        return None


def _neighbours_of_all(index: ImageIndex) -> tuple[list[str], list[str], Floats, Indices, Floats]:
    """Files, paths, vectors of length 1, and the neighbours of each image without itself.

    The neighbours are numbers and similarities [n, k], -1 for none.
    """
    files, paths, parts = [], [], []
    for some_files, some_paths, some_vectors in index.vectors():
        files += some_files
        paths += some_paths
        parts.append(normalise(some_vectors))
    k = min(NEIGHBOURS, len(files) - 1)
    if k < 1:
        none = np.empty((len(files), 0), np.float32)
        return files, paths, none, none.astype(np.int32), none
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
    return files, paths, vectors, *_leave_themselves_out(numbers, similarities)


def _leave_themselves_out(numbers: Indices, similarities: Floats) -> tuple[Indices, Floats]:
    """Each image's neighbours without the image itself, [n, k + 1] -> [n, k]; among many copies the last is dropped."""
    itself = numbers == np.arange(len(numbers))[:, None]
    itself[~itself.any(axis=1), -1] = True
    kept = ~itself
    shape = (len(numbers), numbers.shape[1] - 1)
    return numbers[kept].reshape(shape), similarities[kept].reshape(shape)


def _usual_distances(distances: Doubles) -> tuple[Doubles, float]:
    """The distance from each image to its neighbour of rank `RANK`, [n], and the intrinsic dimension."""
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

    spacings = [number * np.log(at(number + 1) / at(number)) for number in range(2, rank)]
    seen = np.concatenate(spacings) if spacings else np.empty(0)
    seen = seen[np.isfinite(seen)]
    dimension = 1 / float(seen.mean()) if len(seen) and seen.mean() > 0 else 1.0
    around: Doubles = np.maximum(at(rank), np.finfo(np.float32).eps)
    return around, dimension


def _choose_threshold(ratios: Doubles, dimension: float, false_discoveries: float) -> float:
    """The largest ratio at which the share `false_discoveries` of the images found is expected to be false."""
    nearest = np.sort(ratios.min(axis=1))
    p_values = 1 - (1 - np.clip(nearest, 0, 1) ** dimension) ** (RANK - 1)
    allowed = false_discoveries * np.arange(1, len(nearest) + 1) / len(nearest)
    passed = np.nonzero(p_values <= allowed)[0]
    return float(nearest[passed[-1]]) if len(passed) else 0.0


def _connect(pairs: NDArray[np.intp]) -> list[list[int]]:
    """The images that pairs connect, directly or through others."""
    parent = {int(number): int(number) for number in pairs.ravel()}

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second in pairs.tolist():
        parent[root(first)] = root(second)
    groups = defaultdict(list)
    for number in parent:
        groups[root(number)].append(number)
    return [sorted(group) for group in groups.values()]


def _describe(
    found: _Found, files: list[str], paths: list[str], stored: dict[str, StoredFile]
) -> list[list[Duplicate]]:
    """The groups of images that pairs connect, in each the largest file first."""
    nearest: dict[int, tuple[float, float]] = {}  # ratio and similarity
    best: dict[int, float] = {}
    for pair, similarity, ratio, correlation in zip(*(column.tolist() for column in found), strict=True):
        for number in pair:
            nearest[number] = min(nearest.get(number, (np.inf, 0.0)), (ratio, similarity))
            if correlation == correlation:  # not NaN
                best[number] = max(best.get(number, -1.0), correlation)
    groups = []
    for group in _connect(found.pairs):
        images = [
            Duplicate(
                files[number],
                paths[number],
                stored[files[number]].size,
                min(1.0, nearest[number][1]),  # the rounding of a copy's cosine may be above 1
                nearest[number][0],
                best.get(number),
            )
            for number in group
        ]
        groups.append(sorted(images, key=lambda image: (-(image.size or 0), image.path)))
    return groups
