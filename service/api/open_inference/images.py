"""The images of a request in the Open Inference Protocol, in the three forms that its inputs may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from model.arrays import Bytes, Indices
from model.config import MAEConfig
from model.images.preprocess import patchify
from model.masking import MaskError, visible_without
from service.api.open_inference.tensors import Tensor
from service.errors import InvalidParameter, MalformedBody, NoImages, TooManyImages
from service.inference.images import Image, VisiblePatches, WholeImage

IMAGE, PIXELS, PATCHES, POSITIONS, MASK = "image", "pixels", "patches", "positions", "mask"
"""The names of the inputs."""
MAX_NAMES = 8
"""How many names of inputs an error lists; a request may have thousands."""


def read_images(
    inputs: Mapping[str, Tensor], config: MAEConfig, max_images: int, takes_patches: bool, takes_mask: bool
) -> list[Image]:
    """The images of a request.

    They come as one of these inputs, for a model with squares of S pixels and N patches of P numbers:

        image      BYTES [B] or [B, 1]              encoded images
        pixels     UINT8 [B, S, S, 3]               squares that are scaled and cropped already, RGB
        patches    UINT8 [B, K, P], and positions INT32 [B, K]: the visible patches, and their row-major indices

    Args:
        inputs: of the request, by name.
        config: of the model.
        max_images: how many images there may be.
        takes_patches: whether the patches that are not visible may be left out.
        takes_mask: whether the input `mask` may stand beside the images.

    Raises:
        MalformedBody: the inputs are not these, or not of these datatypes and shapes.
        NoImages: there is no image.
        TooManyImages: there are more than `max_images`.
    """
    forms = [{IMAGE}, {PIXELS}, *([{PATCHES, POSITIONS}] if takes_patches else [])]
    given = set(inputs) - ({MASK} if takes_mask else set())
    if given not in forms:
        choices = " or ".join(" with ".join(sorted(form)) for form in forms)
        names = ", ".join([name[:30] for name in sorted(given)[:MAX_NAMES]]) or "none of them"
        raise MalformedBody(f"the images come as the inputs {choices}: given are {names}")
    first = next(tensor for name, tensor in inputs.items() if name != MASK)
    count = first.shape[0] if first.shape else 0
    if count > max_images:
        raise TooManyImages(f"one request may hold {max_images} images, and this one holds {count}", limit=max_images)
    if given == {IMAGE}:
        images: list[Image] = [*_read_encoded(inputs[IMAGE])]
    elif given == {PIXELS}:
        images = [*_read_pixels(inputs[PIXELS], config)]
    else:
        images = [*_read_patches(inputs[PATCHES], inputs[POSITIONS], config)]
    if not images:
        raise NoImages("there is no image in the body")
    return images


def read_masks(mask: Tensor, count: int, num_patches: int) -> list[Indices]:
    """The visible patches of each image, int32 [K], by the input `mask`: UINT8 or BOOL [B, N], 1 for a removed patch.

    Raises:
        MalformedBody: it is no such tensor.
        InvalidParameter: a mask removes nothing or everything, or the masks remove different numbers of patches.
    """
    _require_tensor(mask, "BOOL" if mask.datatype == "BOOL" else "UINT8", (count, num_patches))
    flags: Any = mask.values
    if (flags > 1).any():
        raise MalformedBody("the input mask has values beside 0 and 1", input=MASK)
    try:
        visible = [visible_without(np.flatnonzero(image).tolist(), num_patches) for image in flags]
    except MaskError as error:
        raise InvalidParameter(f"mask: {error}", parameter=MASK) from error
    if len({len(indices) for indices in visible}) > 1:
        raise InvalidParameter("mask: the masks of one request must remove equally many patches", parameter=MASK)
    return visible


def _read_encoded(image: Tensor) -> list[bytes]:
    if image.datatype != "BYTES" or image.shape[1:] not in ((), (1,)) or not image.shape:
        raise _wrong_tensor(image, "BYTES [B] or [B, 1]")
    assert isinstance(image.values, list)
    for index, data in enumerate(image.values):
        if not data:
            raise NoImages(f"image {index} has no bytes", image=index)
    return image.values


def _read_pixels(pixels: Tensor, config: MAEConfig) -> list[WholeImage]:
    side = config.image_size
    _require_tensor(pixels, "UINT8", (None, side, side, 3))
    values: Any = pixels.values
    return [patchify(square, config.patch_size) for square in values]


def _read_patches(patches: Tensor, positions: Tensor, config: MAEConfig) -> list[VisiblePatches]:
    _require_tensor(patches, "UINT8", (None, None, config.patch_dim))
    count, visible = patches.shape[:2]
    _require_tensor(positions, "INT32", (count, visible))
    if not 1 <= visible <= config.num_patches:
        raise MalformedBody(
            f"the input patches has {visible} patches per image: there may be 1 to {config.num_patches}", input=PATCHES
        )
    indices: Any = positions.values
    for image, sorted_indices in enumerate(np.sort(indices, axis=1)):
        if sorted_indices[0] < 0 or sorted_indices[-1] >= config.num_patches:
            raise MalformedBody(
                f"a position of image {image} is no patch: they are numbered 0 to {config.num_patches - 1}",
                input=POSITIONS,
                image=image,
            )
        if (sorted_indices[1:] == sorted_indices[:-1]).any():
            raise MalformedBody(f"a position of image {image} is given twice", input=POSITIONS, image=image)
    # Copies, because what was read is a view of the body that must not be written, and may lie at any address.
    own_patches: Bytes = np.array(patches.values)
    own_indices: Indices = np.array(indices)
    return [VisiblePatches(*image) for image in zip(own_patches, own_indices, strict=True)]


def _require_tensor(tensor: Tensor, datatype: str, shape: tuple[int | None, ...]) -> None:
    """Checks datatype and shape, in which None is any size."""
    fits = len(tensor.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
    if tensor.datatype != datatype or not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise _wrong_tensor(tensor, f"{datatype} [{sizes}]")


def _wrong_tensor(tensor: Tensor, expected: str) -> MalformedBody:
    return MalformedBody(
        f"the input {tensor.name} is {tensor.datatype} {list(tensor.shape)}: it must be {expected}", input=tensor.name
    )
