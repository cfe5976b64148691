"""Crops of many images at once, on the images' device, with the pixels of Pillow's resize.

Pillow scales width and height one after the other. Output pixel i of a crop from `left` to `right`, S pixels wide, is a
weighted mean around the place c it comes from:

    scale = (right - left) / S                        source pixels for one output pixel
    c = left + (i + 1/2) scale
    weight of source pixel x = f((x + 1/2 - c) / max(scale, 1)), for |x + 1/2 - c| < support max(scale, 1)

The weights are divided by their sum; `max(scale, 1)` widens the filter where the image shrinks, which is the
antialiasing. For bicubic f is Keys' kernel with a = -1/2, and its support is 2. Pixels beyond the image's border have
no weight; those beyond the crop's border have. So each output pixel is a sum of a few weighted pixels, along each axis.
Pillow computes with weights of 22 bits in whole numbers and rounds to bytes after each axis; here float32 is rounded in
the same places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.config import Filter

A = TypeVar("A")
ALIGNMENT = 8
"""Sides of the windows are multiples of this: few different sizes, which allocators can use again."""
CHUNK, CPU_CHUNK = 64, 4
"""Crops that are made together. It bounds the memory, of about 4 MB for a crop of 224 pixels; on a CPU that of few
crops stays in the cache."""


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    x = x.clamp(max=2)
    near = (1 - x).clamp(min=0)
    return (2 - x).square() * (0.5 - 0.5 * x) + near.square() * (1 - 2 * near)  # the second summand is 0 from 1 on


def _box(x: Tensor) -> Tensor:
    return (x <= 0.5).to(x.dtype)


def _hamming(x: Tensor) -> Tensor:
    x = x.clamp(max=1)
    return torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x))


def _lanczos(x: Tensor) -> Tensor:
    x = x.clamp(max=3)
    return torch.sinc(x) * torch.sinc(x / 3)


FILTERS: dict[Filter, tuple[float, Callable[[Tensor], Tensor]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
"""Support and kernel of Pillow's filters, as a function of the distance."""


class Crops(NamedTuple):
    """B crops, on the host."""

    first_pixels: NDArray[np.int64]
    """Index of each image's first pixel among the pixels of all images, [B]."""
    sizes: NDArray[np.int64]
    """Width and height of each image, [B, 2]."""
    boxes: NDArray[np.float64]
    """Left, top, right and bottom of each crop in its image, [B, 4]."""
    flips: NDArray[np.bool_]
    """Whether a crop is flipped from left to right, [B]."""

    def select(self, crops: slice | NDArray[np.int64]) -> Crops:
        """Some of the crops."""
        return Crops(self.first_pixels[crops], self.sizes[crops], self.boxes[crops], self.flips[crops])


def crop_squares(pixels: Tensor, crops: Crops, side: int, filter_name: Filter) -> Tensor:
    """Crops images and scales the crops to squares.

    The host neither reads from the device nor waits for it.

    Args:
        pixels: the pixels of all images, one image after the other and row by row, uint8 [pixels, 3].
        crops: the crops.
        side: S.
        filter_name: the filter; not `nearest`.

    Returns:
        uint8 [B, S, S, 3], on the device of `pixels`.
    """
    count = len(crops.flips)
    if pixels.device.type != "cpu":
        parts = [crops.select(slice(start, start + CHUNK)) for start in range(0, count, CHUNK)]
        return torch.cat([_crop_chunk(pixels, part, side, filter_name) for part in parts])
    # Similar crops together: their windows have about the same size.
    order = np.lexsort((crops.boxes[:, 2] - crops.boxes[:, 0], scales_height_first(crops.sizes, side)))
    squares = torch.empty(count, side, side, 3, dtype=torch.uint8)
    for start in range(0, count, CPU_CHUNK):
        chosen = order[start : start + CPU_CHUNK]
        squares[torch.from_numpy(chosen)] = _crop_chunk(pixels, crops.select(chosen), side, filter_name)
    return squares


def _crop_chunk(pixels: Tensor, crops: Crops, side: int, filter_name: Filter) -> Tensor:
    support, kernel = FILTERS[filter_name]
    device, count = pixels.device, len(crops.flips)
    height_first = scales_height_first(crops.sizes, side)
    order = np.stack([height_first, ~height_first]).astype(np.int64)  # [2, B]: 0 where an axis is x, 1 where it is y
    boxes = crops.boxes.astype(np.float32).astype(np.float64)  # as Pillow takes them
    sizes, start, end = (
        np.take_along_axis(of_x_and_y.T, order, axis=0) for of_x_and_y in (crops.sizes, boxes[:, :2], boxes[:, 2:])
    )  # each [2, B]: of the axis that is scaled first, and of the other one
    scale = (end - start) / side
    widening = np.maximum(scale, 1)
    reach = support * widening
    # The window: the part of each image that its crop is made of. All windows have the size of the largest.
    origin = np.maximum(np.floor(start - reach), 0)
    lengths = (np.minimum(np.ceil(end + reach), sizes) - origin).max(axis=1, keepdims=True)
    lengths = np.ceil(lengths / ALIGNMENT) * ALIGNMENT
    m, n = lengths[:, 0].astype(int).tolist()
    taps = 2 * math.ceil(reach.max()) + 1
    flips = crops.flips & (order == 0)
    axes = _Axes(
        origin=origin,
        last=np.minimum(origin + lengths, sizes) - 1,
        stride=np.where(order == 0, 1, crops.sizes[:, 0]),
        base=np.stack([crops.first_pixels, np.zeros_like(crops.first_pixels)]),
        start=np.where(flips, end, start),
        scale=np.where(flips, -scale, scale),
        reach=reach,
        widening=widening,
        window=np.arange(count) * lengths - origin,
        height_first=np.stack([height_first, height_first]),
    )
    axes = _Axes(*to_device(torch.from_numpy(np.stack(axes, dtype=np.float64)[..., None]), device))  # each [2, B, 1]

    place = torch.arange(max(m, n), device=device)
    offset = (torch.minimum(axes.origin + place, axes.last) * axes.stride + axes.base).long()
    index = offset[0, :, :m, None] + offset[1, :, None, :n]  # [B, m, n]: of the windows' pixels
    window = pixels.index_select(0, index.flatten()).float().view(count * m, n * 3)
    indices, weights = _weights(axes, side, taps, kernel)
    sums = _weighted_sums(window, indices[0], weights[0]).floor_()  # [B S, n 3]
    turned = sums.view(count, side, n, 3).transpose(1, 2).reshape(count * n, side * 3)
    squares = _weighted_sums(turned, indices[1], weights[1]).byte().view(count, side, side, 3)
    # The axis that was scaled first is the last one now: x, but y where the height is scaled first.
    if height_first.all() or not height_first.any():
        return squares.transpose(1, 2) if height_first.all() else squares
    return torch.where(axes.height_first[0, :, :, None, None] > 0, squares.transpose(1, 2), squares)


def scales_height_first(sizes: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Whether Pillow scales the height before the width, since version 13; the rounding in between makes a difference.

    Args:
        sizes: width and height of images, [B, 2].
        side: side of the square.
    """
    width, height = sizes.T
    return np.asarray(height - side > 2 * np.maximum(width - side, 0))


class _Axes(NamedTuple, Generic[A]):
    """Where crops and windows lie along the axis that is scaled first, and along the other one; each [2, B]."""

    origin: A
    """Where the window begins in the image."""
    last: A
    """The last pixel of the image in the window."""
    stride: A
    """Distance of two neighbours among the pixels of all images."""
    base: A
    """For the first axis, index of the image's first pixel among the pixels of all images; else 0."""
    start: A
    """Where the first output pixel begins in the image."""
    scale: A
    """Source pixels for one output pixel; negative where the output is flipped."""
    reach: A
    """Largest distance of a source pixel with a weight."""
    widening: A
    """How many times wider than its kernel the filter is."""
    window: A
    """What a place in the image is added to for its number in all windows."""
    height_first: A
    """Whether the first axis is y."""


def _weights(axes: _Axes[Tensor], side: int, taps: int, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The pixels of the windows that each output pixel is a weighted sum of, and their weights.

    Args:
        axes: the crops, tensors [2, B, 1].
        side: S.
        taps: T, the largest number of pixels with a weight.
        kernel: the filter.

    Returns:
        Numbers of the pixels in all windows, int64 [2, B S, T], and float32 [2, B S, T].
    """
    place = torch.arange(0.5, side, device=axes.start.device, dtype=axes.start.dtype)
    centre = axes.start + place * axes.scale  # [2, B, S]
    first = (centre + (0.5 - axes.reach)).clamp_(min=0).floor_()
    last = torch.minimum(centre + (axes.reach - 0.5), axes.last)
    source = first[..., None] + torch.arange(taps, device=place.device)  # [2, B, S, T]
    weight = kernel((source - (centre - 0.5)[..., None]).abs_() / axes.widening[..., None])
    weight.masked_fill_(source > last[..., None], 0)
    weight /= weight.sum(dim=3, keepdim=True)
    indices = torch.minimum(source, axes.last[..., None]) + axes.window[..., None]
    return indices.long().flatten(1, 2), weight.float().flatten(1, 2)


def _weighted_sums(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sums of weighted rows, float [R, C], plus 1/2, from 0 to 255; int64 [n, T] and float [n, T] -> float [n, C].

    Their whole parts are the sums rounded to bytes.
    """
    return F.embedding_bag(indices, rows, mode="sum", per_sample_weights=weights).add_(0.5).clamp_(0, 255)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device; to CUDA from pinned memory, so that the host does not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
