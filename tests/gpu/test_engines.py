"""The engines themselves, held against eager float32 on the CPU and the golden numbers."""

import random
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from model.engines.backend import NO_TENSORRT
from model.engines.base import Engine
from model.masking import PAD
from service.inference.executor import stack_padded
from tests.gpu.conftest import call, centred_cosine, on_all_lanes, places, require_alike

pytestmark = pytest.mark.gpu
OPERATIONS = ("embed", "tokens", "reconstruct")
VISIBLE = (1, 49, 196)
Crowd = Callable[[int], np.ndarray]
BARS = {"fp32": (0.999999, 1), "bf16": (0.999, 12), "fp16": (0.9999, 2)}
"""By precision: centred cosine, and how far a pixel may lie from the golden one (bfloat16 has eight bits)."""
LOSS_FP32 = {"tensorrt": 5e-4, "torch": 1e-4, "openvino": 1e-4}
"""By backend: relative difference of an image's masked loss in fp32; TensorRT for RTX showed 1.5e-4 on an H100."""


@pytest.fixture(scope="module")
def centres(oracle: Engine, crowd: Crowd) -> Mapping[tuple[str, int], np.ndarray]:
    """Mean vectors of the oracle by operation and K, which tell nothing of an image."""
    images = crowd(16)
    return {
        (operation, visible): call(oracle, operation, images, places(visible, 16))[0].mean(axis=0)
        for operation in ("embed", "tokens")
        for visible in VISIBLE
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_parity(
    built: Callable[..., Engine],
    backends: tuple[str, ...],
    on_gpu: bool,
    golden: Mapping[str, np.ndarray],
    crowd: Crowd,
    which: int,
    precision: str,
) -> None:
    """Against numbers that another implementation wrote (transformers' ViTMAE)."""
    if which >= len(backends):
        pytest.skip(f"{backends[0]} is the only backend here: {NO_TENSORRT if on_gpu else 'this is a CPU'}")
    if backends[which] == "openvino" and precision != "fp32":
        pytest.skip("half precision is for the GPU, and for torch")
    engine = built(backends[which], precision)
    assert engine.info.precision == precision and engine.info.parity is not None
    cosine, apart = BARS[precision]
    images, everywhere = crowd(8), np.tile(np.arange(196, dtype=np.int32), (8, 1))
    expected = np.stack([golden["embed_cls"], golden["embed_mean"]], axis=1)
    found = call(engine, "embed", images, everywhere)[0]
    assert centred_cosine(found, expected, expected.mean(axis=0)) >= cosine
    tokens = call(engine, "tokens", images, everywhere)[0].mean(axis=1, keepdims=True)
    assert centred_cosine(tokens, expected[:, 1:], expected[:, 1:].mean(axis=0)) >= cosine
    visible_indices = np.stack([np.flatnonzero(mask == 0) for mask in golden["mask"]]).astype(np.int32)
    pixels, error = engine.reconstruct(0, images, visible_indices)
    painted = golden["reconstruction"].reshape(8, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(8, 196, 768)
    assert np.abs(pixels.astype(int) - painted).max() <= apart
    loss = (error * golden["mask"]).sum(axis=1) / golden["mask"].sum(axis=1)
    assert np.abs(loss / golden["loss"] - 1).max() < (LOSS_FP32[backends[which]] if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_batch_size(
    engine: Engine, oracle: Engine, crowd: Crowd, centres: Mapping, operation: str, visible: int
) -> None:
    """1 to the preferred size, on all lanes in turn: the oracle's answers, the same alone and in company."""
    most = engine.info.preferred_batch
    images, visible_indices = crowd(most), places(visible, most)
    centre = centres.get((operation, visible), np.zeros(1))
    expected = [
        np.concatenate(parts)
        for parts in zip(
            *(call(oracle, operation, images[n : n + 8], visible_indices[n : n + 8]) for n in range(0, most, 8)),
            strict=True,
        )
    ]
    alone = call(engine, operation, images[:1], visible_indices[:1])
    for size in range(1, most + 1):
        found = call(engine, operation, images[:size], visible_indices[:size], lane=size % engine.info.lanes)
        what = (operation, visible, size)
        require_alike(found, [array[:size] for array in expected], centre, (*what, "oracle"))
        require_alike([array[:1] for array in found], alone, centre, (*what, "alone"))


def test_images_with_different_numbers_of_patches_in_one_batch(engine: Engine, crowd: Crowd, centres: Mapping) -> None:
    """Each gets what it gets alone."""
    if not engine.info.mixes:
        pytest.skip("this engine takes none")
    images, counts = crowd(3), (196, 49, 147)
    alone = [places(count, 1)[0] for count in counts]
    visible_indices = stack_padded(alone, PAD)
    for operation in ("embed", "reconstruct"):
        found = call(engine, operation, images, visible_indices)
        for row, where in enumerate(alone):
            expected = call(engine, operation, images[row : row + 1], where[None])
            centre = centres.get((operation, len(where)), np.zeros(1))
            require_alike([array[row : row + 1] for array in found], expected, centre, (operation, len(where)))


def test_a_mixed_load_on_all_lanes(engine: Engine, crowd: Crowd, centres: Mapping) -> None:
    """Operations, batch sizes and K mixed, on every lane at once: each answer that of the same call alone."""
    most = engine.info.preferred_batch
    images = crowd(most)
    draw = random.Random(7)
    asked = []
    for _ in range(24):
        size, visible = draw.randint(1, most), draw.choice(VISIBLE)
        start = draw.randint(0, most - size)
        asked.append((draw.choice(OPERATIONS), slice(start, start + size), places(visible, size)))
    alone = [call(engine, operation, images[part], visible_indices) for operation, part, visible_indices in asked]
    lock, running, overlapped = threading.Lock(), [0], [0]

    def work(lane: int) -> None:
        order = list(range(len(asked)))
        random.Random(lane).shuffle(order)
        for number in order * 3:
            operation, part, visible_indices = asked[number]
            with lock:
                running[0] += 1
                overlapped[0] = max(overlapped[0], running[0])
            try:
                found = call(engine, operation, images[part], visible_indices, lane)
            finally:
                with lock:
                    running[0] -= 1
            centre = centres.get((operation, visible_indices.shape[1]), np.zeros(1))
            require_alike(found, alone[number], centre, (lane, number, operation))

    on_all_lanes(engine, work)
    assert overlapped[0] == engine.info.lanes, "the lanes did not run at once"


def test_earlier_answers_stay(engine: Engine, crowd: Crowd) -> None:
    """Output memory that is used again must have been copied out of."""
    images, visible_indices = crowd(4), places(49, 2)
    for operation in OPERATIONS:
        first = call(engine, operation, images[:2], visible_indices)
        kept = [array.copy() for array in first]
        call(engine, operation, images[2:], visible_indices)
        assert all(np.array_equal(*pair) for pair in zip(first, kept, strict=True)), operation


def test_memory_stays_flat(engine: Engine, crowd: Crowd, device_bytes: Callable[[], int], gpu_batches: int) -> None:
    """Thousands of batches of changing sizes take no memory that the first hundred did not."""
    images = crowd(engine.info.preferred_batch)
    sizes = sorted({1, 2, (engine.info.preferred_batch + 1) // 2, engine.info.preferred_batch})
    kinds = [(operation, size, visible) for operation in OPERATIONS for size in sizes for visible in (49, 196)]

    def work(lane: int, batches: int) -> None:
        for number in range(batches):
            operation, size, visible = kinds[number % len(kinds)]
            call(engine, operation, images[:size], places_of[visible][:size], lane)

    places_of = {visible: places(visible, engine.info.preferred_batch) for visible in (49, 196)}
    on_all_lanes(engine, lambda lane: work(lane, 4 * len(kinds)))
    growth = []
    for _ in range(2):
        before = device_bytes()
        on_all_lanes(engine, lambda lane: work(lane, gpu_batches // (2 * engine.info.lanes)))
        growth.append(device_bytes() - before)
    # A leak grows in both halves; an allocator that takes one more block grows in one.
    assert min(growth) <= 32 << 20, f"{growth} bytes more in the halves of {gpu_batches} batches"
