"""The figures of the parity check, against outputs made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from model.config import MAEConfig
from model.engines.base import ComputedPrecision, Parity
from model.engines.fixed_images import IMAGES, fixed_patches
from model.engines.outputs import EngineOutputs, collect_outputs
from model.engines.parity import (
    TOLERANCES,
    ParityError,
    Tolerance,
    check_parity,
    measure_parity,
    require_tolerance,
    tolerance_for,
)
from model.masking import choose_visible, removed_flags
from tests.support.engines import SMALL, FakeEngine

N, P, D = SMALL.num_patches, SMALL.patch_dim, 64
ENCODER = MAEConfig(**{**SMALL.model_dump(), "decoder_depth": 0})


@pytest.fixture
def expected() -> EngineOutputs:
    """As a masked autoencoder answers: vectors that share a direction beside which their differences are small."""
    generator = np.random.default_rng(0)
    shared = 100 * generator.standard_normal(D)
    whole, masked = (shared + generator.standard_normal((2, IMAGES, 2, D))).astype(np.float32)
    pixels = generator.integers(20, 236, (IMAGES, N, P), dtype=np.uint8)
    return EngineOutputs(whole, masked, pixels, generator.uniform(0.5, 1.5, (IMAGES, N)).astype(np.float32))


def check(outputs: EngineOutputs, expected: EngineOutputs, config: MAEConfig, tolerance: Tolerance) -> Parity:
    return require_tolerance(measure_parity(outputs, expected, config), tolerance)


def plain_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def test_an_engine_equals_itself(expected: EngineOutputs) -> None:
    parity = check(expected, expected, SMALL, TOLERANCES["fp32"])
    assert parity.cosine == pytest.approx(1, abs=1e-12)
    assert (parity.psnr_db, parity.loss_difference) == (99, 0)


def test_plain_cosine_does_not_see_what_the_centred_one_sees(expected: EngineOutputs) -> None:
    noise = np.random.default_rng(1).standard_normal(expected.whole.shape)
    found = replace(expected, whole=(expected.whole + 0.05 * noise).astype(np.float32))
    assert plain_cosine(found.whole, expected.whole) > 0.999999, "the tolerance itself"
    with pytest.raises(ParityError, match="embeddings differ"):
        check(found, expected, SMALL, TOLERANCES["fp32"])


def test_the_centred_cosine_is_that_of_an_angle() -> None:
    centre = np.full(2, 1000.0)
    angles = np.arange(IMAGES) * 2 * np.pi / IMAGES  # spread evenly, so that their mean is the centre
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    found = expected.copy()
    found[3] = np.cos(angles[3] + 0.3), np.sin(angles[3] + 0.3)
    made = [
        EngineOutputs(*(np.repeat(centre + x, 2, axis=0).reshape(IMAGES, 2, 2) for x in pair), None, None)
        for pair in ((expected, expected), (expected, found))
    ]
    assert measure_parity(made[1], made[0], ENCODER).cosine == pytest.approx(np.cos(0.3), abs=1e-9)


@pytest.mark.parametrize("which", ["whole", "masked"])
@pytest.mark.parametrize("pooling", [0, 1])
@pytest.mark.parametrize("wrong", ["nan", "inf", "one of them", "all shifted", "doubled", "swapped", "zero"])
def test_wrong_vectors_do_not_pass(expected: EngineOutputs, which: str, pooling: int, wrong: str) -> None:
    vectors = getattr(expected, which).copy()
    mine = vectors[:, pooling]
    if wrong in ("nan", "inf"):
        mine[3, 5] = float(wrong)
    elif wrong == "one of them":
        mine[3] += 0.1 * np.random.default_rng(2).standard_normal(D)
    elif wrong == "all shifted":
        mine += 0.05
    elif wrong == "doubled":
        mine *= 2
    elif wrong == "swapped":
        mine[[0, 1]] = mine[[1, 0]]
    else:
        mine[:] = 0
    found = replace(expected, **{which: vectors})
    for config in (SMALL, ENCODER):
        with pytest.raises(ParityError, match="embeddings differ from eager float32: centred cosine"):
            check(found, expected, config, TOLERANCES["fp32"])


def test_psnr_is_that_of_the_worst_image(expected: EngineOutputs) -> None:
    assert expected.pixels is not None
    pixels = expected.pixels.copy()
    pixels[2] += 1
    pixels[5, :, ::2] += 2  # mean square 2
    parity = measure_parity(replace(expected, pixels=pixels), expected, SMALL)
    assert parity.psnr_db == pytest.approx(20 * np.log10(255) - 10 * np.log10(2))
    with pytest.raises(ParityError, match=r"reconstructions differ .*PSNR 45\.1 dB, at least 60\.0 is needed"):
        check(replace(expected, pixels=pixels), expected, SMALL, TOLERANCES["fp32"])
    check(replace(expected, pixels=pixels), expected, SMALL, TOLERANCES["bf16"])


def test_the_loss_is_that_of_the_removed_patches(expected: EngineOutputs) -> None:
    assert expected.error is not None
    removed = np.stack([removed_flags(choose_visible("random", 2, 0.75, seed), N) for seed in range(IMAGES)])
    error = expected.error * np.where(removed, 1.01, 5).astype(np.float32)
    found = replace(expected, error=error)
    assert measure_parity(found, expected, SMALL).loss_difference == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityError, match=r"loss differs from eager float32 by 1\.00%"):
        check(found, expected, SMALL, TOLERANCES["fp32"])
    check(found, expected, SMALL, TOLERANCES["fp16"])
    less = replace(expected, error=expected.error * np.float32(0.5))
    with pytest.raises(ParityError, match=r"by 50\.00%"):
        check(less, expected, SMALL, TOLERANCES["fp16"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_error_that_is_no_number_does_not_pass(expected: EngineOutputs, value: float) -> None:
    assert expected.error is not None
    error = expected.error.copy()
    error[4] = value
    with pytest.raises(ParityError, match="loss differs"):
        check(replace(expected, error=error), expected, SMALL, TOLERANCES["bf16"])


def test_without_a_decoder_there_are_no_figures_of_one(expected: EngineOutputs) -> None:
    encoder = replace(expected, pixels=None, error=None)
    parity = check(encoder, encoder, ENCODER, TOLERANCES["fp32"])
    assert (parity.psnr_db, parity.loss_difference) == (None, None)
    assert set(encoder.arrays()) == {"whole", "masked"}


@pytest.mark.parametrize(("image_size", "patch_size"), [(224, 16), (224, 14), (64, 64), (96, 32)])
def test_the_fixed_images_are_always_the_same_and_all_different(image_size: int, patch_size: int) -> None:
    config = MAEConfig(**{**SMALL.model_dump(), "image_size": image_size, "patch_size": patch_size})
    images = fixed_patches(config)
    assert (images.dtype, images.shape) == (np.uint8, (IMAGES, config.num_patches, config.patch_dim))
    assert np.array_equal(images, fixed_patches(config))
    assert len({image.tobytes() for image in images}) == IMAGES
    assert images.std(axis=(1, 2)).min() > 20, "no image is plain"


@pytest.mark.parametrize(
    ("lanes", "preferred", "size"),
    [(1, 32, None), (1, 3, None), (3, 4, None), (2, 1, None), (16, 4, None), (2, 32, 20)],
)
def test_every_lane_is_asked_in_batches_of_its_size(lanes: int, preferred: int, size: int | None) -> None:
    asked: dict[int, int] = {}

    class Counting(FakeEngine):
        def embed(self, lane: int, patches: np.ndarray, visible_indices: np.ndarray) -> np.ndarray:
            asked[lane] = asked.get(lane, 0) + len(patches)
            assert len(patches) == size or (size is None and len(patches) <= preferred)
            return super().embed(lane, patches, visible_indices)

    found = collect_outputs(Counting(preferred, lanes), size)
    rows = max(IMAGES, lanes * (size or 1))
    images = fixed_patches(SMALL)[np.arange(rows) % IMAGES]
    assert np.array_equal(found.whole[:, 0, 0], images[:, 0, 0])
    assert np.array_equal(found.pixels, images)
    assert sum(asked.values()) == 2 * rows
    assert set(asked) == set(range(lanes))


def test_a_row_that_is_wrong_in_a_large_batch_alone_is_found(expected: EngineOutputs) -> None:
    order = np.arange(5 * IMAGES) % IMAGES
    found = EngineOutputs(*(array[order] for array in expected.arrays().values()))  # type: ignore[arg-type]
    assert check(found, expected, SMALL, TOLERANCES["fp32"]).cosine == pytest.approx(1)
    found.whole[33] = expected.whole[0]
    with pytest.raises(ParityError, match=r"embeddings differ .*PARITY_COSINE"):
        check(found, expected, SMALL, TOLERANCES["fp32"])


def test_the_gate_takes_the_worst_of_all_sizes() -> None:
    class Rough(FakeEngine):
        def reconstruct(
            self, lane: int, patches: np.ndarray, visible_indices: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray]:
            pixels, error = super().reconstruct(lane, patches, visible_indices)
            return pixels ^ (1 if len(patches) == 8 else 0), error * (1.01 if len(patches) == 8 else 1)

    expected = collect_outputs(FakeEngine())
    bar = tolerance_for("bf16")
    found = check_parity(Rough(), expected, bar, (1, 8, 4))
    assert found.psnr_db == pytest.approx(20 * np.log10(255))  # every byte off by one
    assert found.loss_difference == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ParityError, match=r"reconstructions in batches of 8 .* 48.1 dB, at least 60.0"):
        check_parity(Rough(), expected, tolerance_for("fp32"), (1, 8, 4))
    assert (
        check_parity(Rough(), expected, tolerance_for("fp32", psnr_db=48, loss=0.02), (1, 8)).psnr_db == found.psnr_db
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "emulated bf16", "fp16", "int8"])
def test_the_operator_sets_bars_one_by_one(precision: ComputedPrecision) -> None:
    own = TOLERANCES[precision]
    assert tolerance_for(precision) == own
    assert tolerance_for(precision, cosine=0.5) == replace(own, cosine=0.5)
    assert tolerance_for(precision, psnr_db=0) == replace(own, psnr_db=0)
    assert tolerance_for(precision, loss=0.3) == replace(own, loss_difference=0.3)
