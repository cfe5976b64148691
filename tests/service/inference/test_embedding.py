"""What a request for embeddings asks for: its patches, and how its vectors are finished."""

import numpy as np
import pytest

from model.checkpoints.heads import Heads, Whitening
from model.config import PRESETS
from model.evaluation.whitening import fit_whitening
from model.masking import random_visible
from service.errors import InvalidParameter
from service.inference.embedding import EmbeddingPlan
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters
from tests.support.engines import SMALL, fake_info


@pytest.fixture
def heads() -> Heads:
    draw = np.random.default_rng(0)
    centre, matrix = draw.normal(size=192), draw.normal(size=(192, 150))
    return Heads(None, {"mean": Whitening(centre.astype(np.float32), matrix.astype(np.float32))})


def plan_of(heads: Heads, parameters: EmbedParameters) -> EmbeddingPlan:
    return EmbeddingPlan.of(parameters, fake_info(), heads)


def test_whitening_comes_before_length_1(heads: Heads) -> None:
    rows = list(np.random.default_rng(1).normal(size=(5, 192)).astype(np.float32))
    whitening = heads.whitening["mean"]
    expected = (np.stack(rows).astype(np.float64) - whitening.centre) @ whitening.matrix.astype(np.float64)
    plan = plan_of(heads, EmbedParameters(whiten=True))
    np.testing.assert_allclose(plan.finish(rows), expected, atol=1e-3)
    assert plan.dim(SMALL) == 150
    short = plan_of(heads, EmbedParameters(whiten=True, normalize=True)).finish(rows)
    np.testing.assert_allclose(short, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def pca_of(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The principal axes of [n, D] by column, largest variance first, and the variances, by a decomposition in float64
    that shares no code with `fit_whitening`."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    return axes.T, singular**2 / len(vectors)


def test_dimensions_are_the_axes_with_the_most_variance() -> None:
    draw = np.random.default_rng(3)
    rows = (draw.normal(size=(400, 8)) * np.geomspace(5, 0.1, 8) @ draw.normal(size=(8, 8)) + 30).astype(np.float32)
    heads = Heads(None, {"mean": fit_whitening(rows)})
    axes, variances = pca_of(rows)
    for k in (1, 3, 8):
        plan = plan_of(heads, EmbedParameters(dimensions=k))
        projected = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)) @ axes[:, :k]
        expected = projected / np.sqrt(variances[:k])
        vectors = plan.finish(list(rows))
        assert vectors.shape == (400, k) and plan.dim(SMALL) == k
        signs = np.sign((vectors * expected).sum(axis=0))
        np.testing.assert_allclose(vectors * signs, expected, atol=2e-3)
        assert plan.explained_variance == pytest.approx(variances[:k].sum() / variances.sum(), abs=1e-4)
    unit = plan_of(heads, EmbedParameters(dimensions=3, normalize=True)).finish(list(rows))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)


def test_whitened_vectors_of_all_axes_tell_no_share(heads: Heads) -> None:
    assert plan_of(heads, EmbedParameters(whiten=True)).explained_variance is None
    assert plan_of(heads, EmbedParameters(dimensions=150)).explained_variance == pytest.approx(1)


@pytest.mark.parametrize(
    ("parameters", "named", "reason"),
    [
        (EmbedParameters(dimensions=151), "dimensions", "has 150 axes, and 151 are more"),
        (EmbedParameters(dimensions=8, whiten=False), "dimensions", "whiten=false asks for none"),
        (EmbedParameters(dimensions=8, pool="tokens"), "dimensions", "tokens are never whitened"),
        (EmbedParameters(dimensions=8, pool="cls"), "dimensions", "no whitening of pool=cls: mae evaluate --fit adds"),
        (EmbedParameters(dtype="binary"), "dtype", "signs of whitened vectors: add whiten=true or dimensions"),
        (EmbedParameters(dtype="binary", pool="tokens"), "dtype", "signs of whitened vectors"),
    ],
)
def test_dimensions_and_signs_that_cannot_be_are_refused(
    heads: Heads, parameters: EmbedParameters, named: str, reason: str
) -> None:
    with pytest.raises(InvalidParameter, match=reason) as refused:
        plan_of(heads, parameters)
    assert refused.value.details == {"parameter": named}


def test_a_cls_token_that_stands_for_nothing_is_refused() -> None:
    config = SMALL.model_copy(update={"decoder_depth": 0, "final_norm": "pooled"})
    message = "pool: fake was fine-tuned on the mean of its tokens, and its cls token stands for nothing: take mean or "
    with pytest.raises(InvalidParameter, match=message):
        EmbeddingPlan.of(EmbedParameters(pool="cls"), fake_info(config), Heads())
    assert EmbeddingPlan.of(EmbedParameters(pool="tokens"), fake_info(config), Heads()).pool == "tokens"


def test_a_vectors_bits_do_not_depend_on_its_company(heads: Heads) -> None:
    rows = list(np.random.default_rng(2).normal(size=(64, 192)).astype(np.float32))
    plan = plan_of(heads, EmbedParameters(whiten=True, normalize=True))
    together = plan.finish(rows)
    for row, vector in zip(rows, together, strict=True):
        np.testing.assert_array_equal(plan.finish([row])[0], vector)


def test_nothing_is_whitened_unless_asked_for(heads: Heads) -> None:
    rows = [np.arange(8, dtype=np.float32), np.zeros(8, np.float32)]
    plan = plan_of(heads, EmbedParameters())
    np.testing.assert_array_equal(plan.finish(rows), np.stack(rows))
    assert plan.dim(SMALL) == SMALL.embed_dim
    scaled = plan_of(heads, EmbedParameters(normalize=True)).finish(rows)
    assert np.linalg.norm(scaled[0]) == pytest.approx(1) and not scaled[1].any()


@pytest.mark.parametrize("pool", ["cls", "tokens"])
def test_what_the_model_does_not_hold_is_refused(heads: Heads, pool: str) -> None:
    with pytest.raises(InvalidParameter, match="whiten") as refused:
        plan_of(heads, EmbedParameters(pool=pool, whiten=True))
    assert refused.value.details == {"parameter": "whiten"}


def test_the_whole_image_is_encoded_without_a_seed() -> None:
    plan = plan_of(Heads(), EmbedParameters(seed=7))
    assert plan.seed is None and plan.visible_indices.tolist() == list(range(SMALL.num_patches))


def test_a_share_of_the_image_is_encoded_by_a_seed() -> None:
    plan = plan_of(Heads(), EmbedParameters(keep=0.5, seed=7))
    assert plan.seed == 7 and np.array_equal(plan.visible_indices, random_visible(SMALL.grid, 0.5, 7))
    seeds = [plan_of(Heads(), EmbedParameters(keep=0.5)).seed for _ in range(2)]
    assert None not in seeds and seeds[0] != seeds[1]


def test_a_share_that_leaves_no_patch_is_refused() -> None:
    with pytest.raises(InvalidParameter) as refused:
        plan_of(Heads(), EmbedParameters(keep=0.05))
    assert refused.value.details == {"parameter": "keep"}


@pytest.mark.parametrize(
    ("parameters", "shares"),
    [
        (EmbedParameters(), [1]),
        (EmbedParameters(min_keep=1), [1]),
        (EmbedParameters(keep=0.5, min_keep=0.5), [1]),
        (EmbedParameters(min_keep=0.25), [1, 0.5, 0.25]),
        (EmbedParameters(min_keep=0.3), [1, 0.5, 0.3]),
        (EmbedParameters(keep=0.8, min_keep=0.25), [1, 0.4, 0.25]),
    ],
)
def test_under_load_the_share_is_halved_down_to_the_least(parameters: EmbedParameters, shares: list[float]) -> None:
    plan = plan_of(Heads(), parameters)
    assert plan.shares == pytest.approx(shares)
    for share in plan.shares[1:]:
        degraded = plan.degrade(share, SMALL.grid)
        assert degraded.seed is not None and len(degraded.visible_indices) == int(4 * share)
        assert degraded.keep(SMALL) == share
        assert f":keep={share}" in space_of(fake_info(), degraded.parameters)


def test_what_the_load_leaves_is_drawn_by_the_seed() -> None:
    plan = plan_of(Heads(), EmbedParameters(min_keep=0.5, seed=9))
    assert plan.seed is None and plan.degrade(0.5, SMALL.grid).seed == 9
    np.testing.assert_array_equal(plan.degrade(0.5, SMALL.grid).visible_indices, random_visible(SMALL.grid, 0.5, 9))


@pytest.mark.parametrize(
    ("parameters", "named", "reason"),
    [
        (EmbedParameters(min_keep=0.1), "min_keep", "leaves none of the 4 patches"),
        (EmbedParameters(keep=0.5, min_keep=0.6), "min_keep", "0.6 is more than keep=0.5"),
        (EmbedParameters(patches="1", keep=0.5), "keep", "the opposite of /reconstruct"),
        (EmbedParameters(patches="1", keep=1.0), "keep", "the opposite of /reconstruct"),
        (EmbedParameters(patches="1", seed=3), "seed", "the opposite of /reconstruct"),
        (EmbedParameters(patches="1", min_keep=0.5), "min_keep", "the opposite of /reconstruct"),
        (EmbedParameters(patches="1,4"), "patches", "there is no patch 4.* the opposite of /reconstruct"),
    ],
)
def test_patches_that_cannot_be_encoded_are_refused(parameters: EmbedParameters, named: str, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=reason) as refused:
        plan_of(Heads(), parameters)
    assert refused.value.details == {"parameter": named}


def test_a_region_is_its_patches_and_all_of_them_are_the_image() -> None:
    region = plan_of(Heads(), EmbedParameters(patches="3,1,3"))
    assert region.visible_indices.tolist() == [1, 3] and region.visible_indices.dtype == np.int32
    assert (region.seed, region.keep(SMALL), region.is_region) == (None, 0.5, True)
    spaces = [space_of(fake_info(), EmbedParameters(patches=patches)) for patches in ("3,1", "0")]
    assert spaces[0] == spaces[1] == space_of(fake_info(), EmbedParameters()) + ":region"
    whole = plan_of(Heads(), EmbedParameters(patches="0,1,2,3"))
    assert not whole.is_region and space_of(fake_info(), whole.parameters) == space_of(fake_info(), EmbedParameters())


def test_a_model_without_a_cls_token_refuses_it() -> None:
    with pytest.raises(InvalidParameter, match="no cls token") as refused:
        EmbeddingPlan.of(EmbedParameters(pool="cls"), fake_info(PRESETS["resnet_tiny"]), Heads())
    assert refused.value.details == {"parameter": "pool"}
