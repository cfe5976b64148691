"""Vectors between the engine and the answer."""

import numpy as np
import pytest

from model.checkpoints.heads import Heads, Whitening
from service.errors import InvalidParameter
from service.inference.postprocess import Postprocessing
from service.parameters import EmbedParameters
from tests.support.engines import SMALL


@pytest.fixture
def heads() -> Heads:
    draw = np.random.default_rng(0)
    centre, matrix = draw.normal(size=192), draw.normal(size=(192, 150))
    return Heads(None, {"mean": Whitening(centre.astype(np.float32), matrix.astype(np.float32))})


def test_whitening_comes_before_length_1(heads: Heads) -> None:
    rows = list(np.random.default_rng(1).normal(size=(5, 192)).astype(np.float32))
    whitening = heads.whitening["mean"]
    expected = (np.stack(rows).astype(np.float64) - whitening.centre) @ whitening.matrix.astype(np.float64)
    finishing = Postprocessing.of(heads, EmbedParameters(whiten=True))
    np.testing.assert_allclose(finishing.apply(rows), expected, atol=1e-3)
    assert finishing.dim(SMALL) == 150
    short = Postprocessing.of(heads, EmbedParameters(whiten=True, normalize=True)).apply(rows)
    np.testing.assert_allclose(short, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_vectors_bits_do_not_depend_on_its_company(heads: Heads) -> None:
    rows = list(np.random.default_rng(2).normal(size=(64, 192)).astype(np.float32))
    finishing = Postprocessing.of(heads, EmbedParameters(whiten=True, normalize=True))
    together = finishing.apply(rows)
    for row, vector in zip(rows, together, strict=True):
        np.testing.assert_array_equal(finishing.apply([row])[0], vector)


def test_nothing_is_whitened_unless_asked_for(heads: Heads) -> None:
    rows = [np.arange(8, dtype=np.float32), np.zeros(8, np.float32)]
    finishing = Postprocessing.of(heads, EmbedParameters())
    np.testing.assert_array_equal(finishing.apply(rows), np.stack(rows))
    assert finishing.dim(SMALL) == SMALL.embed_dim
    scaled = Postprocessing.of(heads, EmbedParameters(normalize=True)).apply(rows)
    assert np.linalg.norm(scaled[0]) == pytest.approx(1) and not scaled[1].any()


@pytest.mark.parametrize("pool", ["cls", "tokens"])
def test_what_the_model_does_not_hold_is_refused(heads: Heads, pool: str) -> None:
    with pytest.raises(InvalidParameter, match="whiten") as refused:
        Postprocessing.of(heads, EmbedParameters(pool=pool, whiten=True))
    assert refused.value.details == {"parameter": "whiten"}
