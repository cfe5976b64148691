"""What the engine computes from the images of a request: an operation, from the visible patches of each pass.

A *pass* of an image is one run of the engine on some of its patches. Most requests have one pass of each image; several
draws of a mask are several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from service.inference.cache import Arrays
from service.inference.image_decoder import DecodedImage
from service.inference.limits import WHOLE
from service.inference.queue import DecoderOutput, Operation, Result

Pass = tuple[Bytes, Indices]
"""One pass of an image: patches uint8 [K, P] or [N, P], visible indices int32 [K]."""
ChooseVisible = Callable[[DecodedImage, int], Indices]
"""Chooses the visible patches of a decoded image, int32 [K], with as many bytes of memory as are reserved for that.

It may raise what `ImageDecoder.decode` raises for a picture that takes long or lacks memory."""
VisibleByPass = Sequence[Indices] | ChooseVisible
"""The visible patches of each pass, int32 [K] with one K, the same in all images; or a function that chooses those of
the only pass of an image."""


@dataclass(frozen=True)
class Inference:
    """What the engine computes from each image of a request."""

    operation: Operation
    visible_by_pass: VisibleByPass
    """`VisiblePatches` have their own."""
    picture: bytes = b""
    """The mask picture by which a function chooses the visible patches."""
    is_determined: bool = True
    """Whether the same request would get the same result again, so that it may be cached: nobody has drawn a seed."""
    keeps_patches: bool = False
    """Whether the results hold the patches of the image."""
    shares: Sequence[float] = WHOLE
    """The shares of an image that each image may count as in the queue, see `Scheduler.admit`."""
    degrade: Callable[[float], Inference] | None = None
    """What is computed instead for a share below 1; needed where there are such shares."""

    @property
    def passes(self) -> int:
        """The number of passes of each image."""
        return 1 if callable(self.visible_by_pass) else len(self.visible_by_pass)

    @property
    def cache_context(self) -> tuple[bytes, ...] | None:
        """All that decides the results of an image beside the image itself; None if they must not be cached."""
        if not self.is_determined:
            return None
        by_pass = () if callable(self.visible_by_pass) else self.visible_by_pass
        visible = b"".join([visible_indices.tobytes() for visible_indices in by_pass])
        return f"{self.operation} {self.passes} {self.keeps_patches}".encode(), visible, self.picture

    def choose_visible(self, image: DecodedImage, reserved: int) -> Sequence[Indices]:
        """The visible patches of each pass of an image; `reserved` bytes of memory are those of `ChooseVisible`."""
        return [self.visible_by_pass(image, reserved)] if callable(self.visible_by_pass) else self.visible_by_pass

    def gather(self, patches: Bytes, visible_indices: Indices) -> Pass:
        """The pass of an image, uint8 [N, P], that sees `visible_indices`; not copied if it needs all patches."""
        if self.operation == "reconstruct" or len(visible_indices) == len(patches):
            return patches, visible_indices
        return patches[visible_indices], visible_indices

    def pack(self, results: ImageResults) -> Arrays:
        """The results of an image as the cache stores them, without what every request brings itself."""
        arrays: list[NDArray[Any]] = [] if results.patches is None else [results.patches]
        for visible_indices, output in zip(results.visible_indices, results.outputs, strict=True):
            arrays += [visible_indices] if callable(self.visible_by_pass) else []
            arrays += output if isinstance(output, DecoderOutput) else (output,)
        return tuple(arrays)

    def unpack(self, arrays: Arrays) -> ImageResults:
        """The results that `pack` has packed for an inference with the same `cache_context`."""
        stored = iter(arrays)
        patches = next(stored) if self.keeps_patches else None
        visible = [next(stored)] if callable(self.visible_by_pass) else self.visible_by_pass
        is_decoded = self.operation == "reconstruct"
        outputs = [DecoderOutput(next(stored), next(stored)) if is_decoded else next(stored) for _ in visible]
        return ImageResults(patches, visible, outputs)


@dataclass(frozen=True)
class ImageResults:
    """The results of one image."""

    patches: Bytes | None
    """The image, uint8 [N, P]; None unless `Inference.keeps_patches`."""
    visible_indices: Sequence[Indices]
    """The visible patches of each pass, int32 [K]."""
    outputs: Sequence[Result]
    """The result of each pass."""

    @property
    def vectors(self) -> Sequence[Floats]:
        """The result of each pass of `embed`, float32 [2, D], or of `tokens`, float32 [K, D]."""
        return [output for output in self.outputs if not isinstance(output, DecoderOutput)]
