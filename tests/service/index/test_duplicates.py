"""Groups of near-duplicates."""

import numpy as np
import pytest

from model.arrays import Floats
from service.index.approximate import update_approximation
from service.index.duplicates import Duplicates, find_duplicates
from tests.service.index.conftest import MakeIndex

DIM = 12


def unrelated(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def near(vectors: Floats, noise: float, seed: int = 1) -> Floats:
    return (vectors + noise * np.random.default_rng(seed).normal(size=vectors.shape)).astype(np.float32)


def groups_of(found: Duplicates) -> set[frozenset[int]]:
    return {frozenset(int(image.path.removesuffix(".jpg")) for image in group) for group in found.groups}


def test_copies_are_found_and_unrelated_images_are_not(make_index: MakeIndex) -> None:
    vectors = unrelated(2000)
    index = make_index(np.concatenate([vectors, near(vectors[:200], 0.02)]))
    found = find_duplicates(index)
    true = {frozenset((number, 2000 + number)) for number in range(200)}
    assert len(groups_of(found) & true) >= 195
    assert 2 <= len(groups_of(found) - true) <= 0.2 * 200  # a tenth is expected: less would miss near-duplicates
    for group in found.groups:
        assert [image.size for image in group] == sorted((image.size for image in group), reverse=True)


def test_among_unrelated_images_hardly_any_are_found(make_index: MakeIndex) -> None:
    assert len(find_duplicates(make_index(unrelated(2000))).groups) <= 3


def test_many_copies_of_one_image_are_one_group(make_index: MakeIndex) -> None:
    vectors = unrelated(500)
    index = make_index(np.concatenate([vectors, near(np.repeat(vectors[:1], 40, axis=0), 0.01), vectors[7:8]]))
    groups = groups_of(find_duplicates(index))
    assert frozenset([0, *range(500, 540)]) in groups and frozenset((7, 540)) in groups


def test_the_scale_of_similarities_does_not_matter(make_index: MakeIndex) -> None:
    """Vectors that are not whitened have a large common direction."""
    vectors = unrelated(1000)
    both = np.concatenate([vectors, near(vectors[:100], 0.02)])
    index = make_index(np.concatenate([both, np.full((1100, 1), 30, np.float32)], axis=1))
    assert {frozenset((number, 1000 + number)) for number in range(100)} <= groups_of(find_duplicates(index))


def test_the_threshold_can_be_given(make_index: MakeIndex) -> None:
    vectors = unrelated(300)
    index = make_index(np.concatenate([vectors, near(vectors[:20], 0.15)]))
    few, many = (find_duplicates(index, threshold) for threshold in (0.001, 0.9))
    assert (few.threshold, few.groups, many.threshold) == (0.001, [], 0.9)
    assert len(many.groups) > 20
    strict, loose = (find_duplicates(index, false_discoveries=share) for share in (0.01, 0.5))
    assert strict.threshold <= loose.threshold


def test_no_similarity_is_above_one(make_index: MakeIndex) -> None:
    """In float32 the cosine of a vector with itself is rounded, for some vectors to more than 1."""
    vectors = unrelated(100)
    groups = find_duplicates(make_index(np.concatenate([vectors, vectors])), threshold=0.01).groups
    similarities = [image.similarity for group in groups for image in group]
    assert len(similarities) == 200 and max(similarities) == 1


def test_similarity_and_ratio_are_those_of_the_nearest_image(make_index: MakeIndex) -> None:
    vectors = unrelated(400)
    everything = np.concatenate([vectors, near(vectors[:1], 0.05)])
    [group] = find_duplicates(make_index(everything), threshold=0.05).groups
    unit = everything / np.linalg.norm(everything, axis=1, keepdims=True)
    cosine = np.sort(unit @ unit[[400, 0]].T, axis=0)[::-1]  # [401, 2]: of the larger file, then of the other
    around = (1 - cosine[1:, :])[3].min()  # the fourth neighbour's distance, without the image itself
    if 1 - cosine[1, 0] < 0.1 * np.median(np.sort(1 - unit @ unit.T, axis=1)[:, 4]):  # a copy is not counted
        around = (1 - cosine[1:, :])[4].min()
    for image in group:
        assert image.similarity == pytest.approx(cosine[1, 0], abs=1e-5)
        assert image.ratio == pytest.approx((1 - cosine[1, 0]) / around, rel=1e-3)


def test_a_large_index_is_searched_in_its_cells(make_index: MakeIndex) -> None:
    vectors = unrelated(1500)
    index = make_index(np.concatenate([vectors, near(vectors[:100], 0.02)]))
    exact = find_duplicates(index)
    assert update_approximation(index, exact_rows=1000)
    cells = find_duplicates(index)
    assert len(groups_of(cells) & groups_of(exact)) >= 0.95 * len(exact.groups)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
def test_few_images(make_index: MakeIndex, count: int) -> None:
    assert find_duplicates(make_index(unrelated(count + 1)[:count].reshape(count, DIM))).groups == []


def test_two_equal_images_among_few(make_index: MakeIndex) -> None:
    vectors = unrelated(6)
    assert groups_of(find_duplicates(make_index(np.concatenate([vectors, vectors[:1]])))) == {frozenset((0, 6))}
