"""Memory that a worker shares with the engine process, in slots of one size: images go there, and results come back.

A slot holds one image: its patches and the indices of its visible patches, and later its result in the same place. It
belongs to the worker until PUT announces the image, and then to the engine process until DONE or RELEASED gives it
back. So a slot is never written by two processes, even when a request is cancelled in the middle of a batch. The memory
has no name in any file system, and none of its pages exists before it is used.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.config import MAEConfig
from service.inference.queue import DecoderOutput, Operation, Result

ALIGNMENT = 64


class SharedBuffers:
    """The slots of one worker, mapped into one of the two processes."""

    def __init__(self, fd: int, config: MAEConfig, count: int) -> None:
        """Maps `count` slots for images and results of a model; the first process that does so sizes the memory."""
        self.count = count
        self._patches, self._patch_dim, self._width = config.num_patches, config.patch_dim, config.embed_dim
        self._floats_at = -(-self._patches * self._patch_dim // ALIGNMENT) * ALIGNMENT
        largest = max(self._floats_at + 4 * self._patches, 4 * self._width * max(2, self._patches))
        self._size = -(-largest // ALIGNMENT) * ALIGNMENT
        if os.fstat(fd).st_size < count * self._size:
            os.ftruncate(fd, count * self._size)
        self._memory: Bytes = np.frombuffer(mmap.mmap(fd, count * self._size), np.uint8)

    def image(self, slot: int, operation: Operation, visible: int) -> tuple[Bytes, Indices]:
        """Views of an image: patches uint8 [K, P], all N for reconstruct, and visible indices int32 [K]."""
        patch_count = self._patches if operation == "reconstruct" else visible
        patches = self._view(slot, 0, np.uint8, patch_count, self._patch_dim)
        return patches, self._view(slot, self._floats_at, np.int32, visible)

    def write_image(self, slot: int, operation: Operation, patches: Bytes, visible_indices: Indices) -> None:
        """Copies an image into a slot."""
        slot_patches, slot_indices = self.image(slot, operation, len(visible_indices))
        slot_patches[:], slot_indices[:] = patches, visible_indices

    def write_result(self, slot: int, operation: Operation, result: Result) -> None:
        """Copies a result into the slot of its image, which it overwrites."""
        if isinstance(result, DecoderOutput):
            pixels, error = self._reconstruction(slot)
            pixels[:], error[:] = result
        else:
            self._vectors(slot, operation, len(result))[:] = result

    def read_result(self, slot: int, operation: Operation, visible: int) -> Result:
        """A copy of the result in a slot."""
        if operation == "reconstruct":
            pixels, error = self._reconstruction(slot)
            return DecoderOutput(pixels.copy(), error.copy())
        return self._vectors(slot, operation, visible).copy()

    def _vectors(self, slot: int, operation: Operation, visible: int) -> Floats:
        return self._view(slot, 0, np.float32, 2 if operation == "embed" else visible, self._width)  # [2, D] or [K, D]

    def _reconstruction(self, slot: int) -> tuple[Bytes, Floats]:
        pixels = self._view(slot, 0, np.uint8, self._patches, self._patch_dim)  # [N, P]
        return pixels, self._view(slot, self._floats_at, np.float32, self._patches)  # [N]

    def _view(self, slot: int, offset: int, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
        if not 0 <= slot < self.count:
            raise IndexError(f"there is no slot {slot}")
        return np.ndarray(shape, dtype, self._memory.data, slot * self._size + offset)
