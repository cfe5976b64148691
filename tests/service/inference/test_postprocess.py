"""Vectors between the engine and the answer."""

import numpy as np
import pytest

from model.checkpoints.heads import Extras, Whitening
from service.errors import InvalidParameter
from service.inference.postprocess import Finishing
from service.parameters import EmbedParameters
from tests.support.engines import SMALL


@pytest.fixture
def extras() -> Extras:
    draw = np.random.default_rng(0)
    centre, matrix = draw.normal(size=192), draw.normal(size=(192, 150))
    return Extras(None, {"mean": Whitening(centre.astype(np.float32), matrix.astype(np.float32))})


def test_whitening_comes_before_length_1(extras: Extras) -> None:
    rows = list(np.random.default_rng(1).normal(size=(5, 192)).astype(np.float32))
    whitening = extras.whitening["mean"]
    expected = (np.stack(rows).astype(np.float64) - whitening.centre) @ whitening.matrix.astype(np.float64)
    finishing = Finishing.of(extras, EmbedParameters(whiten=True))
    np.testing.assert_allclose(finishing.apply(rows), expected, atol=1e-3)
    assert finishing.dim(SMALL) == 150
    short = Finishing.of(extras, EmbedParameters(whiten=True, normalize=True)).apply(rows)
    np.testing.assert_allclose(short, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_vectors_bits_do_not_depend_on_its_company(extras: Extras) -> None:
    rows = list(np.random.default_rng(2).normal(size=(64, 192)).astype(np.float32))
    finishing = Finishing.of(extras, EmbedParameters(whiten=True, normalize=True))
    together = finishing.apply(rows)
    for row, vector in zip(rows, together, strict=True):
        np.testing.assert_array_equal(finishing.apply([row])[0], vector)


def test_nothing_is_whitened_unless_asked_for(extras: Extras) -> None:
    rows = [np.arange(8, dtype=np.float32), np.zeros(8, np.float32)]
    finishing = Finishing.of(extras, EmbedParameters())
    np.testing.assert_array_equal(finishing.apply(rows), np.stack(rows))
    assert finishing.dim(SMALL) == SMALL.embed_dim
    scaled = Finishing.of(extras, EmbedParameters(normalize=True)).apply(rows)
    assert np.linalg.norm(scaled[0]) == pytest.approx(1) and not scaled[1].any()


@pytest.mark.parametrize("pool", ["cls", "tokens"])
def test_what_the_model_does_not_hold_is_refused(extras: Extras, pool: str) -> None:
    with pytest.raises(InvalidParameter, match="whiten") as refused:
        Finishing.of(extras, EmbedParameters(pool=pool, whiten=True))
    assert refused.value.details == {"parameter": "whiten"}
