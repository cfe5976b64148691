"""Approximate search, and its measured recall."""

import numpy as np
import pytest

from model.arrays import Floats
from service.index import approximate
from service.index.approximate import update_approximation
from service.index.exact import exact_neighbours, normalise
from service.index.store import ImageIndex
from tests.service.index.conftest import MakeIndex, make_rows


def clustered(count: int, seed: int, dim: int = 13) -> Floats:
    """Vectors around forty centres."""
    centres = np.random.default_rng(0).normal(size=(40, dim))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, count)] + 0.3 * rng.normal(size=(count, dim))).astype(np.float32)


def recall(index: ImageIndex, vectors: Floats, queries: Floats) -> float:
    """The share of the ten nearest by brute force that the index finds."""
    cosine = normalise(queries) @ normalise(vectors).T
    nearest = np.argsort(-cosine, axis=1)[:, :10]
    found = [{near.path for near in row} for row in index.search(queries, 10)]
    return float(
        np.mean([len(row & {f"{n}.jpg" for n in near}) / 10 for row, near in zip(found, nearest, strict=True)])
    )


def test_small_indexes_are_searched_exactly(make_index: MakeIndex) -> None:
    vectors = clustered(300, 1)
    index = make_index(vectors)
    assert update_approximation(index) is None and index.approximation is None
    assert recall(index, vectors, clustered(50, 2)) == 1


def test_a_large_index_gets_cells_with_a_recall_that_others_measure_too(make_index: MakeIndex) -> None:
    vectors, queries = clustered(3000, 1), clustered(200, 2)
    index = make_index(vectors)
    measured = update_approximation(index, exact_rows=1000)
    assert measured is not None and measured == ImageIndex.open(index.path).approximation
    assert (measured.kind, measured.partitions, measured.rows, measured.queries) == ("IVF_FLAT", 55, 3000, 200)
    assert measured.recall >= approximate.TARGET_RECALL
    assert recall(index, vectors, queries) == pytest.approx(measured.recall, abs=0.03)
    one_cell = measured.model_copy(update={"probes": 1})
    few = index.search(queries, 10, approximation=one_cell)
    exact = index.search(queries, 10, exact=True)
    assert few != exact  # so the cells are really used


def test_cells_keep_up_with_the_index(make_index: MakeIndex) -> None:
    vectors = clustered(6000, 1)
    index = make_index(vectors[:2000])
    first = update_approximation(index, exact_rows=1000)
    index.add(make_rows(vectors[2000:3000], 2000))
    index.compact()
    second = update_approximation(index, exact_rows=1000)
    assert first and second and (first.rows, second.rows) == (2000, 2000)  # not made anew
    assert recall(index, vectors[:3000], clustered(100, 2)) > 0.95
    index.add(make_rows(vectors[3000:], 3000))
    index.compact()
    third = update_approximation(index, exact_rows=1000)
    assert third and third.rows == 6000
    index.remove([f"/photos/{number}.jpg" for number in range(500, 6000)])
    assert update_approximation(index, exact_rows=1000) is None
    assert ImageIndex.open(index.path).approximation is None
    assert recall(index, vectors[:500], clustered(50, 2)) == 1


def test_exact_neighbours_over_batches() -> None:
    vectors, queries = clustered(700, 1), normalise(clustered(600, 2))
    numbers, similarities = exact_neighbours(queries, (vectors[start : start + 90] for start in range(0, 700, 90)), 6)
    cosine = queries @ normalise(vectors).T
    expected = np.argsort(-cosine, axis=1)[:, :6]
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosine, expected, axis=1), atol=1e-6)
    numbers, similarities = exact_neighbours(queries[:2], [vectors[:3]], 5)
    assert (numbers[:, 3:] == -1).all() and sorted(numbers[0, :3]) == [0, 1, 2]
