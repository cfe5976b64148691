"""Tensors of a checkpoint: their type, names and shapes, and position tables for another grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoints.errors import WeightsError, summarise
from model.config import MAEConfig
from model.nn import build_model
from model.nn.vit import sincos_positions


def to_float32(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32.

    Raises:
        WeightsError: one is not of floating point, is sparse, or has no values; the message names `path`.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise WeightsError(f"{path} holds {name} without values, as a tensor of the meta device: expected weights")
        if tensor.layout != torch.strided:
            raise WeightsError(f"{path} holds {name} as a sparse tensor ({tensor.layout}): expected dense weights")
        if not tensor.is_floating_point():
            raise WeightsError(f"{path} holds {name} as {tensor.dtype}: expected floating-point weights")
    return {str(name): tensor.detach().float() for name, tensor in tensors.items()}


def require_exact(path: Path, tensors: dict[str, Tensor], config: MAEConfig) -> None:
    """Raises WeightsError unless the names and shapes are those of the model, and every number is finite."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    if missing := expected.keys() - tensors.keys():
        raise WeightsError(f"{path} lacks {summarise(missing)}, which a masked autoencoder of its size has")
    if unexpected := tensors.keys() - expected.keys():
        raise WeightsError(f"{path} holds {summarise(unexpected)}, which no masked autoencoder of its size has")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{path} holds {name} as {list(tensors[name].shape)}: expected {list(shape)}")
    if not_finite := names_not_finite(tensors):
        raise WeightsError(f"{path} holds infinities or NaN in {summarise(not_finite)}: expected finite weights")


def names_not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that hold infinities or NaN."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def regrid(table: Tensor, config: MAEConfig) -> Tensor:
    """Position table [1, 1 + N, D] for the config's grid; the vector of cls stays."""
    width = table.shape[-1]
    if config.positions == "sincos":
        return sincos_positions(width, config.grid)
    trained = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].reshape(1, trained, trained, width).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(config.grid, config.grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
