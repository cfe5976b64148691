"""Slots: one side finds what the other has put in."""

import os

import numpy as np
import pytest

from service.inference.queue import DecoderOutput
from service.workers.shared_buffers import SharedBuffers
from tests.support.engines import SMALL

PATCHES = np.arange(4 * 768, dtype=np.int64).reshape(4, 768).astype(np.uint8)


@pytest.fixture
def sides(fd: int) -> tuple[SharedBuffers, SharedBuffers]:
    return SharedBuffers(fd, SMALL, 3), SharedBuffers(fd, SMALL, 3)


@pytest.mark.parametrize("visible_indices", [[0, 1, 2, 3], [3, 1], [2]])
def test_an_image_crosses(sides: tuple[SharedBuffers, SharedBuffers], visible_indices: list[int]) -> None:
    worker, engine = sides
    indices = np.array(visible_indices, np.int32)
    worker.write_image(1, "embed", PATCHES[indices], indices)
    patches, received = engine.image(1, "embed", len(visible_indices))
    assert (patches == PATCHES[indices]).all() and (received == indices).all()
    worker.write_image(2, "reconstruct", PATCHES, indices)
    patches, received = engine.image(2, "reconstruct", len(visible_indices))
    assert (patches == PATCHES).all() and (received == indices).all()
    assert received.dtype == np.int32 and patches.dtype == np.uint8


@pytest.mark.parametrize(("operation", "shape"), [("embed", (2, 8)), ("tokens", (3, 8))])
def test_vectors_cross(sides: tuple[SharedBuffers, SharedBuffers], operation: str, shape: tuple[int, int]) -> None:
    worker, engine = sides
    vectors = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    engine.write_result(0, operation, vectors)  # type: ignore[arg-type]
    assert (worker.read_result(0, operation, 3) == vectors).all()  # type: ignore[arg-type]


def test_a_reconstruction_crosses(sides: tuple[SharedBuffers, SharedBuffers]) -> None:
    worker, engine = sides
    error = np.array([0.25, 1, 2, 3], np.float32)
    engine.write_result(2, "reconstruct", DecoderOutput(PATCHES, error))
    pixels, received = worker.read_result(2, "reconstruct", 1)
    assert (pixels == PATCHES).all() and (received == error).all()


def test_slots_do_not_overlap(sides: tuple[SharedBuffers, SharedBuffers]) -> None:
    worker, engine = sides
    indices = np.arange(4, dtype=np.int32)
    for slot in range(3):
        worker.write_image(slot, "reconstruct", PATCHES + np.uint8(slot), indices)
    engine.write_result(1, "reconstruct", DecoderOutput(PATCHES, np.zeros(4, np.float32)))
    for slot in (0, 2):
        patches, received = engine.image(slot, "reconstruct", 4)
        assert (patches == PATCHES + np.uint8(slot)).all() and (received == indices).all()


def test_no_memory_is_taken_before_it_is_used(fd: int) -> None:
    slots = SharedBuffers(fd, SMALL, 10_000)
    assert os.fstat(fd).st_blocks == 0
    slots.write_image(5, "embed", PATCHES, np.arange(4, dtype=np.int32))
    assert 0 < os.fstat(fd).st_blocks * 512 <= 16384


def test_a_slot_that_does_not_exist_is_refused(sides: tuple[SharedBuffers, SharedBuffers]) -> None:
    for slot in (-1, 3):
        with pytest.raises(IndexError):
            sides[0].image(slot, "embed", 4)
